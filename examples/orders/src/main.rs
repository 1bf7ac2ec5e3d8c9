//! The order services as a command.

use clap::{Args, Parser, Subcommand};
use orders_example::{Chaos, Databases, Service, Settings, audit, make_orders, serve};
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Three services that a saga calls, orders to call them for, and the audit of what they were left with.
#[derive(Parser)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Reserves goods.
    Inventory(ServiceArguments),
    /// Charges cards.
    Payment(ServiceArguments),
    /// Prints labels and sends parcels.
    Shipping(ServiceArguments),
    /// Writes orders, one JSON object a line.
    MakeOrders {
        /// How many.
        count: u64,
        /// The same seed gives the same orders.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where to.
        file: PathBuf,
    },
    /// Checks that each order is whole or absent in all three; exit code 1 when one is not.
    Audit {
        /// Database of the inventory.
        #[arg(long, value_name = "DB")]
        inventory: PathBuf,
        /// Database of the payment.
        #[arg(long, value_name = "DB")]
        payment: PathBuf,
        /// Database of the shipping.
        #[arg(long, value_name = "DB")]
        shipping: PathBuf,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct ServiceArguments {
    /// Its database; made if it is missing.
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    /// Where it listens, on the loopback; port 0 is any that is free.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Share of the requests, 0 to 1, that meet a fault: an answer or a connection lost after the
    /// work, or 503 before it.
    #[arg(long, value_name = "P")]
    chaos: Option<f64>,
    /// Where the faults come from.
    #[arg(long, value_name = "S", default_value_t = 1, requires = "chaos")]
    seed: u64,
}

impl ServiceArguments {
    fn serve(self, service: Service) -> Result<ExitCode, Box<dyn Error>> {
        let chaos = self.chaos.map(|share| Chaos { share, seed: self.seed });
        serve(service, &Settings { db: self.db, listen: self.listen, chaos })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn run(what: What) -> Result<ExitCode, Box<dyn Error>> {
    match what {
        What::Inventory(arguments) => arguments.serve(Service::Inventory),
        What::Payment(arguments) => arguments.serve(Service::Payment),
        What::Shipping(arguments) => arguments.serve(Service::Shipping),
        What::MakeOrders { count, seed, file } => {
            make_orders(count, seed, &file)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Audit { inventory, payment, shipping, json } => {
            let report = audit(&Databases { inventory, payment, shipping })?;
            if json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                for violation in &report.violations {
                    println!("violation: {violation}");
                }
                let counts = report.counts;
                println!(
                    "{} orders: {} complete, {} undone, {} violations",
                    counts.orders, counts.complete, counts.undone, counts.violations
                );
            }
            Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn main() -> ExitCode {
    run(Command::parse().what).unwrap_or_else(|error| {
        eprintln!("orders-example: {error}");
        ExitCode::from(2)
    })
}
