//! What one input costs inside a partition: decode, run, undo log, encode, hash, record, gate, reply.
//!
//! 10,000 actors, parcels of about 100 bytes in MessagePack, 32 sessions with 64 inputs in flight
//! each, one commit per 2,048 inputs; the log is a `Vec`. A pure crate reads no clock, not even here,
//! so time it from outside and divide by the number of inputs that it prints:
//!
//! ```text
//! cargo build --release -p rallypoint-engine --example run_rate
//! perf stat -e task-clock target/release/examples/run_rate
//! ```

use rallypoint_base::id::{InputSeq, Lineage, PartitionId, Position, SessionId};
use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use rallypoint_engine::actor::{Actor, Cx};
use rallypoint_engine::codec::{self, Codec};
use rallypoint_engine::command::{Command, Outbox};
use rallypoint_engine::map::Map;
use rallypoint_engine::parcel::{Body, Parcel, kind_tag};
use rallypoint_engine::partition::{Ending, Limits, Partition, Setup};
use rallypoint_engine::registry::Registry;
use rallypoint_rollback::pessimistic::Pessimistic;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Clone, Default, Serialize, Deserialize)]
struct Account {
    balance: i64,
    entries: u32,
}

#[derive(Serialize, Deserialize)]
struct Deposit {
    amount: i64,
    reference: String,
    memo: String,
}

impl Actor for Account {
    const KIND: &'static str = "account";
    type Message = Deposit;
    type Reply = i64;
    type Error = String;
    fn handle(&mut self, deposit: Deposit, _cx: &mut Cx<'_>) -> Result<i64, String> {
        self.balance += deposit.amount;
        self.entries += 1;
        Ok(self.balance)
    }
}

const ACTORS: u64 = 10_000;
const INPUTS: u64 = 12_000_000;
const COMMIT: u64 = 2_048;
const SESSIONS: u64 = 32;

fn main() {
    let mut registry = Registry::default();
    registry.actor::<Account>().expect("one kind");
    let setup = Setup {
        id: PartitionId(0),
        lineage: Lineage(1),
        map: Arc::new(Map::even(1, 1, 7).expect("one partition")),
        registry: Arc::new(registry),
        limits: Limits { checkpoint_runs: u64::MAX, checkpoint_bytes: u64::MAX, ..Limits::default() },
    };
    let mut partition = Partition::new(setup, Box::new(Pessimistic::default()), Box::new(()));
    let mut out = Outbox::default();
    partition.go_live(Time(1), &Ending::default(), &mut out);

    let mut random = Random::new(1);
    let parcels: Vec<Vec<u8>> = (0..ACTORS * 2)
        .map(|_| {
            let reference = format!("{:032x}", u128::from(random.next_u64()));
            let deposit = Deposit { amount: random.below(1000) as i64, reference, memo: "thank you".into() };
            let mut body = Vec::new();
            codec::encode(Codec::Named, Account::SCHEMA, &deposit, &mut body).expect("plain data");
            let mut parcel = Vec::new();
            let key = format!("account-{:06}", random.below(ACTORS));
            let (kind, body) = (kind_tag(Account::KIND), Body::Message(&body));
            Parcel { kind, key: &key, asker: None, body }.encode(&mut parcel);
            parcel
        })
        .collect();
    let bytes: usize = parcels.iter().map(Vec::len).sum();
    println!("{} actors, parcels of {} bytes on average", ACTORS, bytes / parcels.len());

    let mut log: Vec<u8> = Vec::with_capacity(256 << 20);
    let mut tail = Position(0);
    let mut replies = 0u64;
    let mut logged = 0;
    for at in 0..INPUTS {
        let (session, seq) = (SessionId(at % SESSIONS), InputSeq(at / SESSIONS + 1));
        let below = InputSeq(seq.0.saturating_sub(2 * COMMIT / SESSIONS));
        let parcel = &parcels[(at % (ACTORS * 2)) as usize];
        partition.handle_input(Time(at), session, seq, below, false, parcel, &mut out);
        if at % COMMIT == COMMIT - 1 || at + 1 == INPUTS {
            carry_out(&mut out, &mut log, &mut tail, &mut replies);
            partition.handle_durable(Time(at), tail, &mut out);
            carry_out(&mut out, &mut log, &mut tail, &mut replies);
        }
        if log.len() > 200 << 20 {
            logged += log.len() as u64;
            log.clear();
        }
    }
    assert_eq!(replies, INPUTS);
    logged += log.len() as u64;
    println!("{INPUTS} inputs answered, {} bytes logged for each", logged / INPUTS);
}

fn carry_out(out: &mut Outbox, log: &mut Vec<u8>, tail: &mut Position, replies: &mut u64) {
    for command in out.commands.drain(..) {
        match command {
            Command::Append { position, payload, .. } => {
                log.extend_from_slice(&out.bytes[payload]);
                *tail = position;
            }
            Command::Reply { .. } => *replies += 1,
            other => panic!("{other:?}"),
        }
    }
    out.clear();
}
