//! How long a start takes.
use rallypoint_engine::actor::{Actor, Cx};
use rallypoint_host::app::App;
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Counter {
    total: u64,
}
impl Actor for Counter {
    const KIND: &'static str = "counter";
    type Message = u64;
    type Reply = u64;
    type Error = ();
    fn handle(&mut self, add: u64, _: &mut Cx<'_>) -> Result<u64, ()> {
        self.total += add;
        Ok(self.total)
    }
}
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let start = std::time::Instant::now();
    let rt = App::define().actor::<Counter>().open(&dir).unwrap();
    println!("reopened in {:?}: replayed {} {:?}", start.elapsed(), rt.reports()[0].replayed, rt.reports()[0].journal);
}
