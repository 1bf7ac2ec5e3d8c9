//! Actors that do, between them, everything an actor may do, and some things it may not.

use rallypoint_base::time::Time;
use rallypoint_engine::actor::{Actor, Cx, Signal};
use rallypoint_engine::effect::EffectOutcome;
use rallypoint_engine::registry::Registry;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.actor::<Counter>().unwrap();
    registry.actor::<Account>().unwrap();
    registry.actor::<Relay>().unwrap();
    registry.actor::<Player>().unwrap();
    registry.actor::<Troublemaker>().unwrap();
    registry.actor::<Asker>().unwrap();
    registry.actor::<Clock>().unwrap();
    registry.actor::<Caller>().unwrap();
    registry.actor::<Dice>().unwrap();
    registry.actor::<Unsteady>().unwrap();
    registry
}

/// Adds. 0 only reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counter {
    pub total: u64,
}

impl Actor for Counter {
    const KIND: &'static str = "counter";
    type Message = u64;
    type Reply = u64;
    type Error = String;
    fn handle(&mut self, add: u64, _cx: &mut Cx<'_>) -> Result<u64, String> {
        self.total = self.total.checked_add(add).ok_or("the counter is full")?;
        Ok(self.total)
    }
    fn read_only(message: &u64) -> bool {
        *message == 0
    }
}

/// A bank account; transfers leave it and arrive as `Credit`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub balance: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Bank {
    Transfer { to: String, amount: i64 },
    Credit(i64),
}

impl Actor for Account {
    const KIND: &'static str = "account";
    type Message = Bank;
    type Reply = i64;
    type Error = String;
    fn handle(&mut self, message: Bank, cx: &mut Cx<'_>) -> Result<i64, String> {
        match message {
            Bank::Transfer { to, amount } => {
                self.balance -= amount;
                cx.send::<Self>(&to, &Bank::Credit(amount));
                if amount == 13 {
                    return Err("thirteen brings no luck".into());
                }
            }
            Bank::Credit(amount) => self.balance += amount,
        }
        Ok(self.balance)
    }
}

/// Plays a ball back until none is left.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Player {
    pub hits: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ball {
    pub back_to: String,
    pub left: u32,
}

impl Actor for Player {
    const KIND: &'static str = "player";
    type Message = Ball;
    type Reply = ();
    type Error = ();
    fn handle(&mut self, ball: Ball, cx: &mut Cx<'_>) -> Result<(), ()> {
        self.hits += 1;
        if ball.left > 0 {
            let me = cx.key().to_owned();
            cx.send::<Self>(&ball.back_to, &Ball { back_to: me, left: ball.left - 1 });
        }
        Ok(())
    }
}

/// Counts what comes, and sends it on to the next on its way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Relay(pub u64);

impl Actor for Relay {
    const KIND: &'static str = "relay";
    type Message = Vec<String>;
    type Reply = ();
    type Error = ();
    fn handle(&mut self, mut way: Vec<String>, cx: &mut Cx<'_>) -> Result<(), ()> {
        self.0 += 1;
        if !way.is_empty() {
            let next = way.remove(0);
            cx.send::<Self>(&next, &way);
        }
        Ok(())
    }
}

/// Does what must be undone, refused or survived.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Troublemaker {
    pub bumps: u64,
    pub kept: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Trouble {
    /// Counts.
    Bump,
    /// Changes state, sends, sets a timer, asks for an effect, then refuses.
    RefuseAfterEverything,
    /// Changes state, then panics.
    Panic,
    /// Bumps `other`, then makes `victim` panic in the same run.
    PanicInside { other: String, victim: String },
    /// Bumps `other`, then makes `victim` refuse in the same run.
    RefuseInside { other: String, victim: String },
    /// Sends this many messages.
    Spray(u32),
    /// Replies with this many bytes.
    Reply(u32),
    /// Sends a message of this many bytes.
    Send(u32),
    /// Sends to a key of this many bytes.
    Key(u32),
    /// Sets a timer with a name of this many bytes.
    Timer(u32),
    /// Asks for an effect with a name of this many bytes.
    Effect(u32),
    /// Keeps this many bytes.
    Grow(u32),
}

impl Actor for Troublemaker {
    const KIND: &'static str = "troublemaker";
    type Message = Trouble;
    type Reply = Vec<u8>;
    type Error = String;
    fn handle(&mut self, message: Trouble, cx: &mut Cx<'_>) -> Result<Vec<u8>, String> {
        self.bumps += 1;
        match message {
            Trouble::Bump => {}
            Trouble::RefuseAfterEverything => {
                for key in 0..8 {
                    cx.send::<Counter>(&format!("c{key}"), &1);
                }
                cx.set_timer("never", Duration::from_millis(1));
                cx.effect("never", &1u8, Duration::from_secs(1), 1);
                return Err("no".into());
            }
            Trouble::Panic => panic!("as asked"),
            Trouble::PanicInside { other, victim } => {
                cx.send::<Self>(&other, &Trouble::Bump);
                cx.send::<Self>(&victim, &Trouble::Panic);
            }
            Trouble::RefuseInside { other, victim } => {
                cx.send::<Self>(&other, &Trouble::Bump);
                cx.send::<Self>(&victim, &Trouble::RefuseAfterEverything);
            }
            Trouble::Spray(count) => {
                for key in 0..count {
                    cx.send::<Counter>(&format!("c{}", key % 50), &1);
                }
            }
            Trouble::Reply(len) => return Ok(vec![7; len as usize]),
            Trouble::Send(len) => cx.send::<Blob>("blob", &"x".repeat(len as usize)),
            Trouble::Timer(len) => cx.set_timer(&"t".repeat(len as usize), Duration::from_secs(999)),
            Trouble::Effect(len) => cx.effect(&"e".repeat(len as usize), &"why", Duration::from_secs(999), 0),
            Trouble::Grow(len) => self.kept.extend(std::iter::repeat_n('k', len as usize)),
            Trouble::Key(len) => cx.send::<Counter>(&"k".repeat(len as usize), &1),
        }
        Ok(Vec::new())
    }
}

/// Never registered: messages to it have no receiver.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Blob;

impl Actor for Blob {
    const KIND: &'static str = "blob";
    type Message = String;
    type Reply = ();
    type Error = ();
    fn handle(&mut self, _: String, _: &mut Cx<'_>) -> Result<(), ()> {
        Ok(())
    }
}

/// Asks and remembers the answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Asker {
    pub answers: Vec<(u64, String)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Count { key: String, token: u64 },
    Trouble { key: String, trouble: Trouble, token: u64 },
    Blob { key: String, token: u64 },
}

impl Actor for Asker {
    const KIND: &'static str = "asker";
    type Message = Ask;
    type Reply = ();
    type Error = ();
    fn handle(&mut self, message: Ask, cx: &mut Cx<'_>) -> Result<(), ()> {
        match message {
            Ask::Count { key, token } => cx.ask::<Counter>(&key, &1, token),
            Ask::Trouble { key, trouble, token } => cx.ask::<Troublemaker>(&key, &trouble, token),
            Ask::Blob { key, token } => cx.ask::<Blob>(&key, &String::new(), token),
        }
        Ok(())
    }
    fn signal(&mut self, signal: Signal<'_>, _cx: &mut Cx<'_>) -> Result<(), ()> {
        if let Signal::Answer { token, answer } = signal {
            let text = match (answer.reply::<Counter>(), answer.refusal::<Troublemaker>()) {
                (Some(total), _) => format!("reply {total}"),
                (None, Some(refusal)) => format!("refusal {refusal}"),
                (None, None) => match answer.reply::<Troublemaker>() {
                    Some(bytes) => format!("{} bytes", bytes.len()),
                    None => "failure".into(),
                },
            };
            self.answers.push((token, text));
        }
        Ok(())
    }
}

/// Sets timers and remembers when they fired.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Clock {
    pub fired: Vec<(String, u64)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Tick {
    Set { name: String, after: Duration },
    Cancel { name: String },
}

impl Actor for Clock {
    const KIND: &'static str = "clock";
    type Message = Tick;
    type Reply = ();
    type Error = ();
    fn handle(&mut self, message: Tick, cx: &mut Cx<'_>) -> Result<(), ()> {
        match message {
            Tick::Set { name, after } => cx.set_timer(&name, after),
            Tick::Cancel { name } => cx.cancel_timer(&name),
        }
        Ok(())
    }
    fn signal(&mut self, signal: Signal<'_>, cx: &mut Cx<'_>) -> Result<(), ()> {
        if let Signal::Timer { name } = signal {
            self.fired.push((name.to_owned(), cx.now().0));
            match name {
                "again" => cx.set_timer("again", Duration::ZERO),
                "refuse" => return Err(()),
                "panic" => panic!("a timer that panics"),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Asks for effects and remembers how they ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Caller {
    pub ended: Vec<(u64, String)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub count: u32,
    pub timeout: Duration,
}

impl Actor for Caller {
    const KIND: &'static str = "caller";
    type Message = Call;
    type Reply = ();
    type Error = ();
    fn handle(&mut self, call: Call, cx: &mut Cx<'_>) -> Result<(), ()> {
        for token in 0..call.count {
            cx.effect("mail", &format!("to {}", cx.key()), call.timeout, token.into());
        }
        Ok(())
    }
    fn signal(&mut self, signal: Signal<'_>, _cx: &mut Cx<'_>) -> Result<(), ()> {
        if let Signal::Effect { token, outcome } = signal {
            let text = match outcome {
                EffectOutcome::Done(value) => format!("done {:?}", value.bytes()),
                EffectOutcome::Failed(why) => format!("failed {why}"),
                _ => "timed out".into(),
            };
            self.ended.push((token, text));
        }
        Ok(())
    }
}

/// Depends on time and randomness, as the context gives them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Dice {
    pub seen: Vec<(u64, u64)>,
}

impl Actor for Dice {
    const KIND: &'static str = "dice";
    type Message = u8;
    type Reply = (u64, u64);
    type Error = ();
    fn handle(&mut self, _: u8, cx: &mut Cx<'_>) -> Result<(u64, u64), ()> {
        let Time(now) = cx.now();
        let throw = (now, cx.random() ^ cx.random().rotate_left(1));
        self.seen.push(throw);
        Ok(throw)
    }
}

/// What the forbidden actor reads.
pub(crate) static SHARED: AtomicU64 = AtomicU64::new(0);

/// Breaks the rule: its reply depends on memory that no log knows of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Unsteady;

impl Actor for Unsteady {
    const KIND: &'static str = "unsteady";
    type Message = ();
    type Reply = u64;
    type Error = ();
    fn handle(&mut self, (): (), _cx: &mut Cx<'_>) -> Result<u64, ()> {
        Ok(SHARED.fetch_add(1, Ordering::SeqCst))
    }
}
