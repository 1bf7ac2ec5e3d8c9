//! The four processes: the server and the three services.
//!
//! Decides their ports, once, and starts each again where it was. Never lets one outlive the demo.

use orders_example::{Chaos, Service, Settings};
use rallypoint_host::os::process::die_with_parent;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// In the order in which they are killed.
pub(super) const NAMES: [&str; 4] = ["serve", "inventory", "payment", "shipping"];
/// The definition that this demo serves, with the ports of this run in it.
const DEFINITION: &str = include_str!("../../../../../examples/orders/order.yaml");

/// One of the services, in a process of its own.
#[derive(clap::Args)]
pub(crate) struct ServiceArguments {
    name: String,
    #[arg(long)]
    db: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    chaos: f64,
    #[arg(long)]
    seed: u64,
}

/// Serves until it is killed.
pub(crate) fn run_service(arguments: ServiceArguments) -> u8 {
    let service = match arguments.name.as_str() {
        "inventory" => Service::Inventory,
        "payment" => Service::Payment,
        _ => Service::Shipping,
    };
    let chaos = Some(Chaos { share: arguments.chaos, seed: arguments.seed });
    let settings = Settings { db: arguments.db, listen: arguments.listen, chaos };
    if let Err(error) = orders_example::serve(service, &settings) {
        eprintln!("{error}");
        return 2;
    }
    0
}

struct Process {
    name: &'static str,
    address: SocketAddr,
    child: Child,
    kills: u64,
}

/// All four. They end with it.
pub(super) struct Processes {
    dir: PathBuf,
    chaos: f64,
    seed: u64,
    all: Vec<Process>,
    next: usize,
}

impl Processes {
    /// Finds free ports, writes the definition and starts them.
    pub(super) fn start(dir: &Path, chaos: f64, seed: u64) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("no port can be had on 127.0.0.1: {error}");
        // All are held until the last is found, so that no two are the same.
        let mut held = Vec::new();
        for _ in NAMES {
            held.push(TcpListener::bind("127.0.0.1:0").map_err(failed)?);
        }
        let addresses: Result<Vec<SocketAddr>, _> = held.iter().map(TcpListener::local_addr).collect();
        let addresses = addresses.map_err(failed)?;
        drop(held);
        let mut definition = DEFINITION.to_owned();
        for (port, address) in (7001..).zip(&addresses[1..]) {
            definition = definition.replace(&format!("127.0.0.1:{port}"), &address.to_string());
        }
        let sagas = dir.join("sagas");
        let written =
            fs::create_dir_all(&sagas).and_then(|()| fs::write(sagas.join("order.yaml"), definition));
        written.map_err(|error| format!("cannot write {}: {error}", sagas.display()))?;
        let mut processes = Self { dir: dir.to_owned(), chaos, seed, all: Vec::new(), next: 0 };
        for (name, address) in NAMES.into_iter().zip(addresses) {
            let child = processes.spawn(name, address, 0)?;
            processes.all.push(Process { name, address, child, kills: 0 });
        }
        Ok(processes)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(name).with_extension("log")
    }

    fn spawn(&self, name: &'static str, address: SocketAddr, kills: u64) -> Result<Child, String> {
        let failed = |error: std::io::Error| format!("{name} cannot be started: {error}");
        let log = File::options().create(true).append(true).open(self.log(name)).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        if name == "serve" {
            command.arg("serve").arg("--dir").arg(self.dir.join("store"));
            command.arg("--sagas").arg(self.dir.join("sagas"));
        } else {
            command.args(["demo-service", name, "--chaos", &self.chaos.to_string()]);
            // Each life meets faults of its own.
            command.args(["--seed", &self.seed.wrapping_add(kills << 32).to_string()]);
            command.arg("--db").arg(self.dir.join(name).with_extension("db"));
        }
        command.args(["--listen", &address.to_string()]);
        let errors = log.try_clone().map_err(failed)?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        die_with_parent(&mut command);
        command.spawn().map_err(failed)
    }

    /// Address of the server.
    pub(super) fn server(&self) -> String {
        format!("http://{}", self.all[0].address)
    }

    /// Has one ended by itself?
    pub(super) fn check(&mut self) -> Result<(), String> {
        let found = self.all.iter_mut().find_map(|process| {
            let status = process.child.try_wait().ok().flatten()?;
            Some((process.name, status))
        });
        let Some((name, status)) = found else { return Ok(()) };
        let log = self.log(name);
        let text = fs::read_to_string(&log).unwrap_or_default();
        let last = text.lines().last().unwrap_or("it said nothing");
        Err(format!("{name} ended by itself ({status}): {last}; its log is {}", log.display()))
    }

    /// Kills the next one and starts it again.
    pub(super) fn kill_next(&mut self) -> Result<(), String> {
        let at = self.next;
        self.next = (at + 1) % self.all.len();
        let process = &mut self.all[at];
        let gone = process.child.kill().and_then(|()| process.child.wait());
        gone.map_err(|error| format!("{} cannot be killed: {error}", process.name))?;
        process.kills += 1;
        let (name, address, kills) = (process.name, process.address, process.kills);
        self.all[at].child = self.spawn(name, address, kills)?;
        Ok(())
    }

    /// How many kills so far.
    pub(super) fn total_kills(&self) -> u64 {
        self.all.iter().map(|process| process.kills).sum()
    }

    /// Ends all of them, and gives who was killed how often while it ran.
    pub(super) fn end(self) -> BTreeMap<&'static str, u64> {
        self.all.iter().map(|process| (process.name, process.kills)).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for process in &mut self.all {
            // One that has ended already is as good.
            let _ = process.child.kill().and_then(|()| process.child.wait());
        }
    }
}
