//! Worlds under chaos, and the proof that their invariants can fail.

mod bank;
mod mutations;
mod special;

use rallypoint_base::random::Random;
use rallypoint_sim::TestClient;
use rallypoint_sim::bank::{Account, Extra, Order};

/// What the clients of a bank do.
#[derive(Clone, Copy)]
struct Load {
    transfers: u64,
    clients: usize,
    accounts: u64,
    /// Looks, percent of the transfers.
    looks: u64,
    /// Poisonous orders, percent of the transfers.
    poison: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self { transfers: 40, clients: 2, accounts: 8, looks: 30, poison: 3 }
    }
}

/// Sends everything; the windows of the clients decide how fast.
fn send(client: &mut TestClient<'_>, seed: u64, load: Load) {
    let mut random = Random::new(seed ^ 0xBA2);
    for id in 1..=load.transfers {
        let number = (id % load.clients as u64) as usize;
        // Long names make commits of several blocks, of which a power loss may leave some.
        let name = |number: u64| format!("a{number}{}", "-".repeat(if seed % 3 == 1 { 200 } else { 0 }));
        let (key, to) = (name(random.below(load.accounts)), name(random.below(load.accounts)));
        let extra = match random.below(8) {
            0 => Extra::Effect,
            1 => Extra::Timer,
            2 => Extra::Answer,
            _ => Extra::None,
        };
        let amount = random.range(1, 300) as i64;
        client.send_as::<Account>(number, &key, &Order::Transfer { id, to, amount, extra });
        if random.chance(load.looks, 100) {
            let key = name(random.below(load.accounts));
            client.send_as::<Account>(number, &key, &Order::Look);
        }
        if random.chance(load.poison, 100) {
            let order = if random.chance(1, 2) { Order::Panic } else { Order::Abort };
            client.send_as::<Account>(number, &key, &order);
        }
    }
}
