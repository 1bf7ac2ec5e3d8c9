//! A power cut after every disk operation of writing, collecting and recovering; and proof that each
//! of these checks can fail.

use crate::rig::*;
use rallypoint_base::id::{Position, Version};
use rallypoint_store::checkpoint::{CheckpointStore, Finding, ScanMode};
use rallypoint_store::copies::Copies;
use rallypoint_store::disk::Disk;
use rallypoint_store::sim_disk::{SimDisk, SimDrive};

/// What was promised before the power went.
#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    newest: Version,
    cut: Position,
}

/// Two chains, then a third that makes the first one unnecessary, then its collection; a pin and a
/// failed restore in between.
fn script<D: Disk>(copies: &mut Copies<D>, promised: &mut Promised) -> Result<(), String> {
    let (mut store, _) = scan(copies).map_err(|error| error.to_string())?;
    let plan = [(None, 10, 3), (Some(1), 20, 2), (None, 30, 36), (Some(3), 40, 0), (None, 50, 2)];
    for (base, position, chunks) in plan {
        let version =
            write(copies, &mut store, begin(base, position, chunks)).map_err(|error| error.to_string())?;
        promised.newest = version;
        promised.cut = store.log_cut(LOG);
    }
    // From here until it is durably unpinned, version 3 may be pinned, and pins the log.
    promised.cut = Position(30);
    store.pin(copies, LOG, Version(3)).map_err(|error| error.to_string())?;
    store.record_failed_restore(copies, LOG, Version(4)).map_err(|error| error.to_string())?;
    store.unpin(copies, LOG, Version(3)).map_err(|error| error.to_string())?;
    if let Some(event) = store.poll(copies) {
        // A copy failed: until the mirror has recorded its loss, it may bring the pin back.
        return Err(format!("{event:?}"));
    }
    promised.cut = store.log_cut(LOG);
    assert_eq!(promised.cut, Position(40));
    if !collect(copies, &mut store) {
        return Err("the collection did not end".into());
    }
    let left: Vec<u64> = store.versions(LOG).iter().map(|info| info.manifest.version.0).collect();
    assert_eq!(left, [3, 4, 5], "collection keeps two part-disjoint chains");
    Ok(())
}

/// What must hold after every crash. Recovery is run twice; the second run finds nothing.
fn audit(machine: &Machine, promised: Promised) -> Result<(), String> {
    let (mut copies, mut store, findings) = machine.open();
    let lost = |f: &&Finding| {
        matches!(
            f,
            Finding::PartLost { .. }
                | Finding::ManifestLost { .. }
                | Finding::NotRepaired { .. }
                | Finding::CopyFailed { .. }
        )
    };
    if let Some(finding) = findings.iter().find(lost) {
        return Err(format!("after a mere crash: {finding:?}"));
    }
    check_store(&mut copies, &mut store, promised)?;
    if !collect(&mut copies, &mut store) {
        return Err("the collection after recovery did not end".into());
    }
    check_store(&mut copies, &mut store, promised)?;
    drop((copies, store));

    let (_copies, _, again) = machine.open();
    if !again.is_empty() {
        return Err(format!("recovery is not idempotent: {again:?}"));
    }
    // Each copy alone is whole.
    for drive in &machine.drives {
        let mut alone = Copies::new(vec![SimDisk::open_read_only(drive)]);
        let looked = CheckpointStore::scan(&mut alone, IDENTITY, ScanMode::LookOnly);
        let (mut store, findings) = looked.map_err(|error| error.to_string())?;
        if !findings.is_empty() {
            return Err(format!("one copy alone: {findings:?}"));
        }
        check_store(&mut alone, &mut store, promised)?;
    }
    Ok(())
}

fn check_store<D: Disk>(
    copies: &mut Copies<D>,
    store: &mut CheckpointStore,
    promised: Promised,
) -> Result<(), String> {
    check_all(copies, store)?;
    let newest = store.newest(LOG).unwrap_or_default();
    if newest < promised.newest {
        return Err(format!("{} was written, {newest} is the newest", promised.newest));
    }
    if store.log_cut(LOG) < promised.cut {
        return Err(format!("the log may be cut at {}, recovery needs it from before", promised.cut));
    }
    Ok(())
}

/// Crashes at every operation; the first failure, if any.
fn crash_everywhere(drives: u64, mutation: Mutation, seeds: std::ops::Range<u64>) -> Result<u64, String> {
    let mut crashes = 0;
    for seed in seeds {
        for at in 1.. {
            let machine = Machine::new(drives, seed * 10_000 + at);
            let disks = machine.drives.iter().map(|drive| Mutant::new(SimDisk::open(drive), mutation));
            let mut copies = Copies::new(disks.collect());
            let reorder = seed % 2 == 1;
            machine.drives.iter().for_each(|drive| drive.set_reordering(reorder));
            machine.power.crash_after(at);
            let mut promised = Promised::default();
            let ended = script(&mut copies, &mut promised);
            let crashed = machine.drives[0].is_crashed();
            if !crashed {
                ended.expect("without a crash everything works");
                machine.power.crash();
            }
            drop(copies);
            let context = |why| format!("seed {seed}, power cut at operation {at}: {why}");
            if seed % 3 == 2 {
                // The power goes again while recovery runs.
                machine.power.crash_after(1 + at % 40);
                let mut copies = machine.copies();
                if let Ok((mut store, _)) = scan(&mut copies) {
                    collect(&mut copies, &mut store);
                }
                machine.power.crash();
            }
            audit(&machine, promised).map_err(context)?;
            crashes += 1;
            if !crashed {
                break;
            }
        }
    }
    Ok(crashes)
}

#[test]
fn a_crash_at_every_operation_leaves_the_promised_versions_usable_on_one_disk() {
    let crashes = crash_everywhere(1, Mutation::None, seeds(6)).unwrap();
    assert!(crashes > 600, "only {crashes} crashes");
}

#[test]
fn a_crash_at_every_operation_leaves_the_promised_versions_usable_on_two_disks() {
    let crashes = crash_everywhere(2, Mutation::None, seeds(6)).unwrap();
    assert!(crashes > 1200, "only {crashes} crashes");
}

/// Each of these is a store with one ordering rule broken; the check above must see it.
#[test]
fn the_crash_check_sees_every_broken_order() {
    for mutation in
        [Mutation::DropSync, Mutation::DropSyncNames, Mutation::RenameBeforeSync, Mutation::RemovePartFirst]
    {
        for drives in [1, 2] {
            let seen = crash_everywhere(drives, mutation, 0..20);
            assert!(seen.is_err(), "{mutation:?} on {drives} disks went unnoticed: {seen:?}");
        }
    }
}

/// A killed process leaves names that only the cache has; what the next one saw must stay.
fn kill_everywhere(mutation: Mutation) -> Result<(), String> {
    for at in 1.. {
        let machine = Machine::new(2, at);
        machine.power.crash_after(at);
        let ended = script(&mut machine.copies(), &mut Promised::default());
        machine.drives.iter().for_each(SimDrive::kill);
        let disks = machine.drives.iter().map(|drive| Mutant::new(SimDisk::open(drive), mutation));
        let (store, _) = scan(&mut Copies::new(disks.collect())).map_err(|error| error.to_string())?;
        let seen = Promised { newest: store.newest(LOG).unwrap_or_default(), cut: store.log_cut(LOG) };
        machine.drives.iter().for_each(|drive| drive.crash_with(|_| false));
        let (mut copies, mut store, _) = machine.open();
        check_store(&mut copies, &mut store, seen)
            .map_err(|why| format!("killed at operation {at}: {why}"))?;
        if ended.is_ok() {
            break;
        }
    }
    Ok(())
}

#[test]
fn what_was_seen_after_a_kill_stays_when_the_power_goes() {
    kill_everywhere(Mutation::None).unwrap();
    assert!(kill_everywhere(Mutation::DropSyncNames).is_err(), "the check cannot fail");
}
