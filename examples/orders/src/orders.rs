//! Orders to try the saga with, one JSON object a line.

use crate::chaos::random;
use crate::inventory::{SKUS, SOLD_OUT};
use crate::payment::DECLINED;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// One order: the input of one saga.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its name, everywhere.
    pub id: String,
    /// What is ordered.
    pub sku: String,
    /// How many of it.
    pub quantity: u32,
    /// What it costs.
    pub cents: u64,
    /// What it is paid with; `declined` is.
    pub card: String,
}

/// Why orders could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write orders to {}: {source}; choose a place that can be written", file.display())]
pub struct MakeOrdersError {
    file: PathBuf,
    source: std::io::Error,
}

impl Order {
    /// Order number `number` of `seed`. About one in ten is declined, one in twenty is sold out.
    fn random(seed: u64, number: u64) -> Self {
        let random = |field| random(seed, number * 8 + field);
        let sku = if random(0) % 20 == 0 { SOLD_OUT } else { SKUS[random(1) as usize % SKUS.len()] };
        let card =
            if random(2) % 10 == 0 { DECLINED.to_owned() } else { format!("card-{}", random(3) % 1000) };
        Self {
            id: format!("order-{seed}-{number}"),
            sku: sku.to_owned(),
            quantity: 1 + (random(4) % 3) as u32,
            cents: 100 + random(5) % 10_000,
            card,
        }
    }
}

/// Writes `count` orders to `file`, the same ones for the same seed.
pub fn make_orders(count: u64, seed: u64, file: &Path) -> Result<(), MakeOrdersError> {
    let write = || {
        let mut writer = BufWriter::new(File::create(file)?);
        for number in 0..count {
            serde_json::to_writer(&mut writer, &Order::random(seed, number))?;
            writer.write_all(b"\n")?;
        }
        writer.flush()
    };
    write().map_err(|source| MakeOrdersError { file: file.to_owned(), source })
}
