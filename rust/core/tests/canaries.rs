//! Proves that the checks can fail: plants each of these bugs in a copy of the crate and expects the
//! simulation or the model test to find it.
//!
//! The copy (in `target/canaries`) holds all bugs at once, each asleep behind its number, and is
//! compiled once. The crate itself knows nothing of them.
#![expect(clippy::print_stdout, reason = "shows what caught each bug")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "support/mutants.rs"]
mod mutants;

use mutants::{MUTANTS, Mutant};

/// What the driver runs before it lets a bug pass.
const NUM_SEEDS: &str = "2000";

#[test]
fn every_planted_bug_is_caught() {
    let driver = build(MUTANTS);
    assert_eq!(run(&driver, 0), None, "without a bug, every check must pass");
    let mut report = String::new();
    let mut num_missed = 0;
    for (number, mutant) in (1..).zip(MUTANTS) {
        let caught = run(&driver, number);
        num_missed += usize::from(caught.is_none());
        let how = caught.unwrap_or_else(|| "NOT CAUGHT".to_owned());
        writeln!(report, "{:<44} {how}", mutant.name).unwrap();
    }
    println!("{report}");
    assert_eq!(num_missed, 0, "planted bugs went unnoticed:\n{report}");
}

/// Runs the driver with one bug awake; returns what caught it.
fn run(driver: &Path, number: usize) -> Option<String> {
    let output = Command::new(driver)
        .args([&number.to_string(), NUM_SEEDS])
        .output()
        .expect("the driver starts");
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn build(mutants: &[Mutant]) -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = crate_dir.join("../..");
    let copy = root.join("target/canaries/crate");
    if copy.exists() {
        fs::remove_dir_all(&copy).unwrap();
    }
    copy_sources(&crate_dir.join("src"), &copy.join("src"));
    for (number, mutant) in (1..).zip(mutants) {
        plant(&copy.join("src").join(mutant.file), mutant, number);
    }
    let switch = "\n/// Whether a planted bug is awake.\n\
        pub fn planted(number: u32) -> bool { AWAKE.load(std::sync::atomic::Ordering::Relaxed) == number }\n\
        /// The bug that is awake.\n\
        pub static AWAKE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);\n";
    let library = copy.join("src/lib.rs");
    fs::write(&library, fs::read_to_string(&library).unwrap() + switch).unwrap();
    copy_sources(&crate_dir.join("tests/support"), &copy.join("src/bin/driver"));
    fs::rename(copy.join("src/bin/driver/driver.rs"), copy.join("src/bin/driver/main.rs")).unwrap();
    fs::write(copy.join("Cargo.toml"), manifest(&root)).unwrap();
    fs::copy(root.join("Cargo.lock"), copy.join("Cargo.lock")).unwrap();
    let target = root.join("target/canaries/target");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--bin", "driver"])
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTFLAGS")
        .status()
        .expect("cargo starts");
    assert!(status.success(), "the crate with planted bugs does not compile");
    target.join("debug/driver")
}

/// A manifest of its own: the same dependencies, no dev-dependencies.
fn manifest(root: &Path) -> String {
    let workspace = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let dependency = |name: &str| {
        let line = workspace.lines().find(|line| line.starts_with(&format!("{name} = ")));
        line.unwrap_or_else(|| panic!("{name} is a workspace dependency")).to_owned()
    };
    let dependencies = ["hashbrown", "siphasher", "thiserror"].map(dependency).join("\n");
    format!(
        "[workspace]\n\n[package]\nname = \"pagedkv-core\"\nversion = \"0.0.0\"\n\
         edition = \"2024\"\n\n[dependencies]\n{dependencies}\n\n\
         [profile.dev]\nopt-level = 1\ndebug = false\n"
    )
}

fn copy_sources(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_sources(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

/// Replaces the one place that the mutant names; in it, `PLANTED` asks whether the bug is awake.
fn plant(file: &Path, mutant: &Mutant, number: usize) {
    let source = fs::read_to_string(file).unwrap();
    let count = source.matches(mutant.old).count();
    assert_eq!(count, 1, "'{}': its old text must occur once in {}", mutant.name, mutant.file);
    let new = mutant.new.replace("PLANTED", &format!("crate::planted({number})"));
    fs::write(file, source.replace(mutant.old, &new)).unwrap();
}
