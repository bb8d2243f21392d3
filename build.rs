//! Finds out which commit is built, for the log's first line, `hookgate_build_info` and `--version`: `HOOKGATE_COMMIT` of
//! the environment, else git's or the package's own record, else none, which `ops::COMMIT` calls unknown. With git also
//! the day of the commit, for `--version`: two builds of one commit are the same.
//!
//! Builds for development ask nobody: they would be made anew after each commit.

#![expect(clippy::disallowed_methods, reason = "a build script is told by the environment")]

use std::{env, fs, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=HOOKGATE_COMMIT");
    let given = env::var("HOOKGATE_COMMIT").ok().filter(|commit| !commit.is_empty());
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = given.or_else(|| release.then(|| of_git().or_else(of_package)).flatten());
    if let Some(commit) = commit.filter(|commit| commit.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        let day = Path::new(".git")
            .exists()
            .then(|| git(&["show", "--no-patch", "--format=%cs", &commit]))
            .flatten();
        let about = day.map_or_else(|| commit.clone(), |day| format!("{commit} {day}"));
        println!("cargo::rustc-env=HOOKGATE_COMMIT={commit}");
        println!("cargo::rustc-env=HOOKGATE_VERSION={} ({about})", env!("CARGO_PKG_VERSION"));
    }
}

/// Where this folder is a work tree of its own, and not a part of another one.
fn of_git() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    // It gets a line with each commit and each checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// What Cargo writes into a package that is made of a work tree.
fn of_package() -> Option<String> {
    let record = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = record.split_once("\"sha1\"")?;
    rest.split('"').nth(1)?.get(..12).map(str::to_owned)
}
