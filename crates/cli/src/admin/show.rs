//! What the commands say to people.
//!
//! Decides words, never figures: each text is made of the same report that `--json` prints.

use super::when::moment;
use crate::output::grouped;
use indicatif::HumanBytes;
use rallypoint_host::store_tools::{
    BackedUp, CheckpointDetails, CheckpointLine, EventList, Fault, LogEnd, Mended, Quarantined, Restored,
    Scrubbing, Verification,
};
use std::fmt::Write;
use std::path::Path;

fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}

fn fault(out: &mut String, fault: &Fault) {
    let mut place = fault.directory.clone().unwrap_or_default();
    if let Some(file) = &fault.file {
        place = file.clone();
        if let Some(block) = fault.block {
            place.push_str(&format!(" block {block}"));
        }
    }
    if !place.is_empty() {
        place.push_str(": ");
    }
    let mark = if fault.repairable { "repairable" } else { "DAMAGED" };
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{mark:<11}{place}{}", fault.what);
}

pub(crate) fn verification(found: &Verification, dir: &Path) -> String {
    let mut out = String::new();
    for directory in &found.directories {
        let _ = writeln!(
            out,
            "{}: {}, {} in {} ({}), {} ({})",
            directory.directory,
            plural(directory.copies as u64, "copy", "copies"),
            plural(directory.records, "record", "records"),
            plural(directory.commits, "commit", "commits"),
            HumanBytes(directory.journal_bytes),
            plural(directory.checkpoints, "checkpoint", "checkpoints"),
            HumanBytes(directory.checkpoint_bytes),
        );
    }
    for note in &found.notes {
        let _ = writeln!(out, "note       {note}");
    }
    for finding in &found.findings {
        fault(&mut out, finding);
    }
    let channels = plural(found.channels.len() as u64, "channel", "channels");
    if found.sound {
        let _ = writeln!(out, "sound: store {}; {channels}, nothing received that was not sent", found.store);
    } else {
        let count = plural(found.findings.len() as u64, "finding", "findings");
        let beyond = found.findings.iter().filter(|finding| !finding.repairable).count() as u64;
        let next = match beyond {
            0 => format!("`rallypoint mend {}` repairs all of it", dir.display()),
            1 => {
                "1 is beyond repair from what is here: bring back a missing copy, or restore a backup".into()
            }
            _ => format!(
                "{} are beyond repair from what is here: bring back a missing copy, or restore a backup",
                grouped(beyond)
            ),
        };
        let _ = writeln!(out, "damaged: store {}; {count}; {next}", found.store);
    }
    out
}

pub(crate) fn scrubbing(done: &Scrubbing) -> String {
    let mut out = String::new();
    for finding in &done.findings {
        fault(&mut out, finding);
    }
    for directory in &done.directories {
        let _ = writeln!(
            out,
            "{}: {} and {} compared, {} repaired, {} bad on every copy",
            directory.directory,
            plural(directory.blocks, "block", "blocks"),
            plural(directory.chunks, "chunk", "chunks"),
            grouped(directory.repaired),
            grouped(directory.bad),
        );
    }
    if done.by_workers {
        out.push_str("scrubbed by the workers that serve it; `rallypoint events` names each repair\n");
    }
    out
}

pub(crate) fn mended(done: &Mended) -> String {
    let mut out = String::new();
    for finding in &done.findings {
        fault(&mut out, finding);
    }
    for place in &done.returned {
        let _ = writeln!(out, "written anew and in use again: {place}");
    }
    let repaired = plural(done.repaired, "piece", "pieces");
    let copied = HumanBytes(done.copied);
    let _ = if done.beyond_repair {
        writeln!(
            out,
            "beyond repair: {repaired} repaired, {copied} copied; what is marked DAMAGED is on no copy that is \
             here: bring back a missing copy, or restore a backup"
        )
    } else {
        writeln!(out, "mended: {repaired} repaired, {copied} copied")
    };
    out
}

fn ends(out: &mut String, logs: &[LogEnd]) {
    let ends: Vec<String> = logs.iter().map(|end| format!("p{} @{}", end.partition, end.position)).collect();
    let _ = writeln!(out, "partitions end at {}", ends.join(", "));
}

pub(crate) fn backed_up(done: &BackedUp, to: &Path) -> String {
    let mut out = String::new();
    let number = done.numbers.iter().max().copied().unwrap_or(0);
    let _ = writeln!(
        out,
        "backup {number} of store {} in {}: {} written, {} were there, {}",
        done.store,
        to.display(),
        HumanBytes(done.written),
        HumanBytes(done.skipped),
        plural(done.checkpoints, "checkpoint", "checkpoints"),
    );
    ends(&mut out, &done.logs);
    if done.beyond_cut > 0 {
        let _ = writeln!(
            out,
            "{} at the ends of logs will not come back: what caused them was not in its directory's image yet",
            plural(done.beyond_cut, "record", "records"),
        );
    }
    out
}

pub(crate) fn restored(done: &Restored, dir: &Path) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "restored store {} to {}: {}, {}; lineage {} (was {})",
        done.store,
        dir.display(),
        plural(done.records, "record", "records"),
        plural(done.checkpoints, "checkpoint", "checkpoints"),
        done.lineage,
        done.from_lineage,
    );
    ends(&mut out, &done.logs);
    let _ = writeln!(
        out,
        "MISSING: every input that was acknowledged behind these positions; none that was acknowledged before {} \
         is among them, so whoever got an acknowledgement later must be told, or send it again",
        moment(done.taken),
    );
    if done.beyond_cut > 0 {
        let _ = writeln!(
            out,
            "{} of the backup were left out, since what caused them is not in it",
            plural(done.beyond_cut, "record", "records"),
        );
    }
    out
}

pub(crate) fn checkpoints(lines: &[CheckpointLine]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<5} {:>9} {:>8} {:>10} {:>12} {:>11}  {:<24} state",
        "dir", "partition", "version", "builds on", "position", "bytes", "taken"
    );
    for line in lines {
        let mut state = vec![line.state];
        state.extend((!line.usable && line.state == "good").then_some("chain broken"));
        state.extend(line.newest.then_some("newest"));
        state.extend(line.archive.then_some("archive of sagas"));
        state.extend(line.pinned.then_some("pinned"));
        let _ = writeln!(
            out,
            "{:<5} {:>9} {:>8} {:>10} {:>12} {:>11}  {:<24} {}",
            line.directory,
            format!("p{}", line.partition),
            format!("v{}", line.version),
            line.base.map_or_else(|| "(full)".into(), |base| format!("v{base}")),
            format!("@{}", line.position),
            HumanBytes(line.bytes).to_string(),
            moment(line.created),
            state.join(", "),
        );
    }
    out
}

pub(crate) fn checkpoint(found: &CheckpointDetails) -> String {
    let mut out = checkpoints(std::slice::from_ref(&found.line));
    let chain: Vec<String> = found.chain.iter().map(|version| format!("v{version}")).collect();
    let _ = writeln!(out, "program    {}", found.line.program);
    let _ = writeln!(out, "restored   from {}", chain.join(", "));
    let _ = writeln!(out, "holds      runs through @{}, the log through @{}", found.run, found.line.position);
    let _ = writeln!(out, "time       {} (the partition's own)", moment(found.time));
    let _ = writeln!(
        out,
        "waiting    {}, {}",
        plural(found.effects as u64, "effect", "effects"),
        plural(found.set_aside as u64, "input set aside", "inputs set aside"),
    );
    for channel in &found.sent {
        let _ = writeln!(
            out,
            "sent       to p{} through {} ({} without receipt)",
            channel.to,
            channel.ssn,
            HumanBytes(channel.unacknowledged_bytes as u64)
        );
    }
    for channel in &found.received {
        let _ = writeln!(out, "received   from p{} through {}", channel.from, channel.ssn);
    }
    out
}

pub(crate) fn events(list: &EventList) -> String {
    let mut out = String::new();
    for event in &list.events {
        let _ = write!(out, "{} {:<4} {:<18}", moment(event.time), event.directory, event.kind);
        for (key, value) in &event.fields {
            // A person reads it, and a line is an event.
            let value = value.replace('\n', " ");
            let _ = if value.contains(' ') {
                write!(out, " {key}={value:?}")
            } else {
                write!(out, " {key}={value}")
            };
        }
        out.push('\n');
    }
    if list.lost_batches > 0 {
        let _ = writeln!(
            out,
            "{} of events are damaged on every copy",
            plural(list.lost_batches, "batch", "batches")
        );
    }
    out
}

fn input(entry: &Quarantined) -> String {
    let to = match (&entry.actor_kind, &entry.key) {
        (Some(kind), Some(key)) => format!("for actor {key:?} of kind {kind}"),
        _ => "that cannot be decoded".into(),
    };
    format!("p{} @{}: {} bytes {to}: {}", entry.partition, entry.position, entry.bytes, entry.evidence)
}

pub(crate) fn quarantine(entries: &[Quarantined]) -> String {
    let mut out = String::new();
    for entry in entries {
        let _ = writeln!(out, "{}", input(entry));
    }
    if entries.is_empty() {
        out.push_str("nothing was set aside\n");
    }
    out
}

pub(crate) fn dropped(entry: &Quarantined) -> String {
    format!("dropped for good: {}\n", input(entry))
}
