//! The faults: which, when, against whom.
//!
//! Decides: everything that goes wrong, from the seed. Each world draws a selection of kinds, since
//! a world with all of them at once hardly gets far enough to show what one of them breaks.
//!
//! Never: beyond the promise. Disk faults hit one chosen copy of a mirrored pair, never a directory
//! with one copy (that one only loses power); a checkpoint rots on all copies at most once per
//! directory, because an older chain and the log behind it are promised. A protocol that keeps no
//! log has nothing behind an older chain: there a checkpoint rots on the one chosen copy only.

use crate::message::Node;
use crate::settings::Settings;
use crate::world::{Event, Life, World};
use rallypoint_base::id::LogId;
use rallypoint_base::limits::BLOCK;
use rallypoint_base::random::Random;
use rallypoint_engine::unit::Unit;
use rallypoint_store::checkpoint::{FileKind, file_name};
use rallypoint_store::disk::DiskErrorKind;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strike {
    Kill,
    KillInCheckpoint,
    Power,
    PowerInOperation,
    All,
    Hang,
    HangLong,
    Clock,
    Cut,
    Rot,
    DiskError,
    DiskLie,
    DiskLost,
    RotCheckpoint,
    Coordinator,
}

pub(crate) struct Nemesis {
    on: bool,
    strikes: u64,
    kinds: Vec<Strike>,
    /// Per thousand messages.
    pub(crate) drop: u64,
    pub(crate) duplicate: u64,
    pub(crate) slow: u64,
    pub(crate) effects: bool,
    pub(crate) power: bool,
}

impl Nemesis {
    pub(crate) fn new(settings: &Settings, random: &mut Random) -> Self {
        let faults = settings.faults;
        let mut kinds = Vec::new();
        let mut may = |allowed: bool, strikes: &[Strike]| {
            for &strike in strikes {
                if allowed && random.chance(1, 2) {
                    kinds.push(strike);
                }
            }
        };
        may(faults.kills, &[Strike::Kill, Strike::KillInCheckpoint]);
        may(faults.power, &[Strike::Power, Strike::PowerInOperation]);
        may(faults.kills || faults.power, &[Strike::All]);
        may(faults.hangs, &[Strike::Hang, Strike::HangLong]);
        may(faults.clocks, &[Strike::Clock]);
        may(faults.network, &[Strike::Cut]);
        may(faults.disks, &[Strike::Rot, Strike::DiskError, Strike::DiskLie, Strike::DiskLost]);
        may(faults.checkpoints, &[Strike::RotCheckpoint]);
        may(settings.rolls_back && (faults.kills || faults.power), &[Strike::Coordinator]);
        let rate = |random: &mut Random, max| if faults.network { random.below(max) } else { 0 };
        Self {
            on: true,
            strikes: if kinds.is_empty() { 0 } else { settings.strikes },
            kinds,
            drop: rate(random, 60),
            duplicate: rate(random, 60),
            slow: rate(random, 80),
            effects: faults.effects,
            power: faults.power,
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// True when a disk of this world may acknowledge what it does not do.
    pub(crate) fn may_lie(&self) -> bool {
        self.kinds.contains(&Strike::DiskLie)
    }

    /// True when the last planned fault has struck.
    pub(crate) fn is_over(&self) -> bool {
        !self.on || self.strikes == 0
    }

    pub(crate) fn stop(&mut self) {
        self.on = false;
    }
}

impl World {
    pub(crate) fn strike(&mut self) {
        if self.nemesis.is_over() {
            return;
        }
        self.nemesis.strikes -= 1;
        if let Some(&strike) = self.random.pick(&self.nemesis.kinds) {
            self.carry_out(strike);
        }
        let after = self.micros(500, 12_000);
        self.push(after, Event::Nemesis);
    }

    fn any_worker(&mut self) -> usize {
        self.random.below(self.workers.len() as u64) as usize
    }

    fn carry_out(&mut self, strike: Strike) {
        let worker = self.any_worker();
        let is_up = self.workers[worker].life != Life::Down;
        self.trace(|| format!("strike: {strike:?}"));
        match strike {
            Strike::Kill if is_up => {
                self.tally.hit("kill -9");
                self.end_worker(worker, false);
            }
            Strike::KillInCheckpoint => {
                let writing = |world: &Self, worker| {
                    let of_worker = world.directories.iter().filter(|directory| directory.worker == worker);
                    of_worker.filter_map(|directory| directory.unit.as_ref()).any(Unit::is_checkpointing)
                };
                let found = (0..self.workers.len()).find(|&worker| writing(self, worker));
                if let Some(worker) = found {
                    let power = self.nemesis.power && self.random.chance(1, 2);
                    self.tally.hit(if power { "power loss" } else { "kill -9" });
                    self.end_worker(worker, power);
                } else if self.workers[worker].life == Life::Up {
                    // So that the next strike of this kind finds one.
                    for directory in 0..self.directories.len() {
                        if self.directories[directory].worker == worker {
                            self.drive(directory, |unit, now, exit| {
                                unit.request_checkpoints(now, true, exit)
                            });
                        }
                    }
                    self.push(Duration::from_micros(300), Event::Nemesis);
                }
            }
            Strike::Power => {
                self.tally.hit("power loss");
                self.end_worker(worker, true);
            }
            Strike::PowerInOperation => {
                let nth = self.random.range(1, 30);
                self.workers[worker].power.crash_after(nth);
            }
            Strike::All => {
                self.tally.hit("everything at once");
                let power = self.nemesis.power && self.random.chance(1, 2);
                for worker in 0..self.workers.len() {
                    self.end_worker(worker, power);
                }
            }
            Strike::Hang => {
                let duration = self.micros(1_000, 40_000);
                self.hang(worker, duration);
            }
            Strike::HangLong => self.hang(worker, Duration::from_secs(1)),
            Strike::Clock => {
                let by = self.random.range(1, 20_000_000_000) as i64;
                let forward = self.random.chance(1, 2);
                self.tally.hit(if forward { "clock forward" } else { "clock back" });
                self.workers[worker].clock += if forward { by } else { -by };
            }
            Strike::Cut => {
                let a = Node::Worker(worker);
                let b = match self.random.below(3) {
                    0 => Node::Client(self.random.below(self.clients.len().max(1) as u64) as usize),
                    1 if self.coordinator.is_some() => Node::Coordinator,
                    _ => Node::Worker((worker + 1) % self.workers.len()),
                };
                self.tally.hit("network partition");
                // One way now and then: what is heard need not be answered.
                self.cuts.insert((a, b));
                if self.random.chance(3, 4) {
                    self.cuts.insert((b, a));
                }
                let after = self.micros(2_000, 80_000);
                self.push(after, Event::Mend { a, b });
            }
            Strike::Rot => self.rot(),
            Strike::DiskError => self.disk_error(),
            Strike::DiskLie => self.disk_lie(),
            Strike::DiskLost => {
                if let Some((at, copy)) = self.bad_copy() {
                    self.lose_disk(at, copy);
                }
            }
            Strike::RotCheckpoint => self.rot_checkpoint(),
            Strike::Coordinator => {
                let power = self.nemesis.power && self.random.chance(1, 2);
                if let Some(host) = &mut self.coordinator {
                    self.tally.hit("coordinator crashed");
                    host.crash(power);
                    let after = self.micros(500, 30_000);
                    self.push(after, Event::CoordinatorRestart);
                }
            }
            Strike::Kill => {}
        }
    }

    /// A directory with two copies, and the copy of it that may go bad.
    fn bad_copy(&mut self) -> Option<(usize, usize)> {
        let mirrored: Vec<(usize, usize)> = self
            .directories
            .iter()
            .enumerate()
            .filter(|(_, directory)| directory.created)
            .filter_map(|(at, directory)| Some((at, directory.bad_copy?)))
            .collect();
        self.random.pick(&mirrored).copied()
    }

    /// Where it hurts: a file in use, and a block that was written.
    fn place(&mut self, at: usize, copy: usize) -> Option<(String, u64)> {
        let drive = self.directories[at].drives[copy].clone();
        let files: Vec<(String, u64)> =
            drive.files().into_iter().filter(|(name, len)| *len > 0 && name != "lock").collect();
        let (name, _) = self.random.pick(&files)?.clone();
        let bytes = drive.file(&name)?;
        let written: Vec<u64> = bytes
            .chunks(BLOCK)
            .enumerate()
            .filter(|(_, block)| block.iter().any(|&byte| byte != 0))
            .map(|(block, _)| block as u64)
            .collect();
        let block = self.random.pick(&written).copied()?;
        Some((name, block))
    }

    fn rot(&mut self) {
        let Some((at, copy)) = self.bad_copy() else { return };
        for _ in 0..self.random.range(1, 4) {
            let Some((file, block)) = self.place(at, copy) else { return };
            let drive = self.directories[at].drives[copy].clone();
            self.trace(|| format!("rot in block {block} of d{at}-{copy}/{file}"));
            // With every slot of it gone the copy counts as lost.
            self.directories[at].lost_copy |= file == "superblock";
            match self.random.below(3) {
                0 => {
                    let offset = block * BLOCK as u64 + self.random.below(BLOCK as u64);
                    drive.flip_bit(&file, offset, self.random.below(8) as u8);
                }
                1 => drop(drive.zero_block(&file, block)),
                _ => {
                    let from = self.random.below(16);
                    drive.copy_block(&file, from, block);
                }
            }
        }
    }

    fn disk_error(&mut self) {
        let Some((at, copy)) = self.bad_copy() else { return };
        let drive = self.directories[at].drives[copy].clone();
        let nth = self.random.range(1, 6);
        self.trace(|| format!("error on d{at}-{copy}"));
        match self.random.below(4) {
            0 => drive.fail_write(nth, DiskErrorKind::Io),
            1 => drive.fail_sync(nth, DiskErrorKind::Io),
            _ => {
                let Some((file, block)) = self.place(at, copy) else { return };
                let start = block * BLOCK as u64;
                drive.fail_read(&file, start..start + BLOCK as u64);
            }
        }
        self.directories[at].lost_copy = true;
    }

    fn disk_lie(&mut self) {
        let Some((at, copy)) = self.bad_copy() else { return };
        let drive = self.directories[at].drives[copy].clone();
        let nth = self.random.range(1, 6);
        self.trace(|| format!("lie on d{at}-{copy}"));
        if self.random.chance(1, 2) {
            drive.lose_write(nth);
        } else {
            drive.misdirect_write(nth, self.random.below(8) * BLOCK as u64);
        }
        // What a superblock lost or got elsewhere may read like a copy that stayed behind.
        self.directories[at].lost_copy = true;
    }

    fn lose_disk(&mut self, at: usize, copy: usize) {
        self.tally.hit("disk lost");
        self.directories[at].lost_copy = true;
        let worker = self.directories[at].worker;
        if self.workers[worker].life == Life::Up && self.random.chance(1, 2) {
            // While it serves: the next operation on it says so.
            let drive = self.directories[at].drives[copy].clone();
            for nth in 1..200 {
                drive.fail_op(nth, DiskErrorKind::Io);
            }
        } else {
            self.end_worker(worker, false);
            self.directories[at].drives[copy].wipe();
        }
    }

    /// Rots the newest checkpoint of a partition, then ends the worker.
    fn rot_checkpoint(&mut self) {
        // A rolling protocol keeps no log that could stand in for a checkpoint.
        let one_copy = self.settings.rolls_back;
        let candidates: Vec<usize> = (0..self.directories.len())
            .filter(|&at| !self.directories[at].rotted_checkpoint && self.directories[at].unit.is_some())
            .filter(|&at| !one_copy || self.directories[at].bad_copy.is_some())
            .collect();
        for at in candidates {
            let Some(unit) = &self.directories[at].unit else { continue };
            let logs: Vec<_> = unit.checkpoints().logs().collect();
            let several =
                |&log: &LogId| log.archived().is_none() && unit.checkpoints().versions(log).len() > 1;
            let Some(log) = logs.into_iter().find(several) else {
                continue;
            };
            let Some(version) = unit.checkpoints().newest(log) else { continue };
            let name = file_name(log, version, FileKind::Part);
            let offset = self.random.below(200);
            let mut hit = false;
            for (copy, drive) in self.directories[at].drives.iter().enumerate() {
                if one_copy && self.directories[at].bad_copy != Some(copy) {
                    continue;
                }
                // A copy that was dropped has no such file.
                hit |= drive.flip_bit(&name, offset, 3);
            }
            if hit {
                self.directories[at].rotted_checkpoint = true;
                let worker = self.directories[at].worker;
                self.tally.hit("kill -9");
                self.end_worker(worker, false);
                return;
            }
        }
    }
}
