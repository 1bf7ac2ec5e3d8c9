//! A counter that survives `kill -9`.

use rallypoint::{Actor, App, Cx};
use serde::{Deserialize, Serialize};

#[derive(Clone, Default, Serialize, Deserialize)]
struct Counter {
    total: u64,
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
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = App::define().actor::<Counter>().open("counter-data")?;
    let client = runtime.client();
    loop {
        let total = client.ask::<Counter>("visits", &1).wait()?;
        println!("{total}"); // on the disk before it is on the screen
    }
}
