//! No partition has received what its sender, as it is now, has not sent.
//!
//! Source: design 4, promise 3; Elnozahy et al. 2002, section 2.3 (consistent system states): a cut
//! is consistent when received <= sent holds on every channel. Checked against memory after every
//! recovery and against the durable state in every audit.

use super::{Fact, Invariant};
use rallypoint_base::id::Ssn;

/// See the module.
pub struct NoOrphan;

impl Invariant for NoOrphan {
    fn name(&self) -> &'static str {
        "no_orphan"
    }

    fn check(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Some(states) = fact.states() else { return Ok(()) };
        for receiver in &states.0 {
            for (&from, channel) in &receiver.channels {
                let Some(sender) = states.0.iter().find(|state| state.partition == from) else { continue };
                let sent = sender.channels.get(&receiver.partition).map_or(Ssn(0), |channel| channel.sent);
                if channel.received > sent {
                    let (to, received) = (receiver.partition, channel.received);
                    return Err(format!("{to} has received {received} from {from}, which has sent {sent}"));
                }
            }
        }
        Ok(())
    }
}
