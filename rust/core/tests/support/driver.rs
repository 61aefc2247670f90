//! Runs the checks with one planted bug awake. Arguments: the bug's number and how many seeds to try.
//! Prints what caught it and exits with 1; exits with 0 if nothing did.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

mod naive;

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u32>().expect("a number"));
    let (number, num_seeds) = (args.next().expect("a bug"), args.next().expect("a count"));
    pagedkv_core::AWAKE.store(number, Ordering::Relaxed);
    std::panic::set_hook(Box::new(|_| ()));
    for seed in 0..u64::from(num_seeds) {
        let checks: [(&str, fn(u64) -> Result<(), String>); 2] = [
            ("simulation", |seed| {
                let run = pagedkv_core::simulator::simulate(seed);
                run.map(|_| ()).map_err(|failure| failure.message)
            }),
            ("model", naive::run),
        ];
        for (name, check) in checks {
            let message = match catch_unwind(AssertUnwindSafe(|| check(seed))) {
                Ok(Ok(())) => continue,
                Ok(Err(message)) => message,
                Err(panic) => match panic.downcast_ref::<String>() {
                    Some(message) => message.clone(),
                    None => (*panic.downcast_ref::<&str>().unwrap_or(&"panic")).to_owned(),
                },
            };
            println!("{name}, seed {seed}: {message}");
            std::process::exit(1);
        }
    }
}
