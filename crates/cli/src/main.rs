//! The `rallypoint` command.

#![allow(dead_code, reason = "the command that uses these modules comes with the hosts")]

mod demo;
mod output;

fn main() {}
