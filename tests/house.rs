//! Holds the rules of the house: who may import whom (see the crate's documentation).

#![expect(
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test may fail by a panic, in its helpers too"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The source files as paths below `src` with their code, comments left out.
fn house() -> Vec<(String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let house: Vec<_> = sources(&src)
        .into_iter()
        .map(|path| {
            let code: Vec<_> = fs::read_to_string(&path)
                .unwrap()
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .map(str::to_owned)
                .collect();
            (path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned(), code.join("\n"))
        })
        .collect();
    assert!(house.len() > 30, "the house has {} files: is this test looking at it?", house.len());
    house
}

/// The modules of ours that code imports by `crate::`, as first path segments, in `use` groups too.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            // The first segments of a group are those at depth one.
            let mut depth = 1;
            let mut segment = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 1 && (c.is_alphanumeric() || c == '_') {
                    segment.push(c);
                } else if depth == 1 && c == ':' && !segment.is_empty() {
                    found.push(std::mem::take(&mut segment));
                } else if c == ',' || c == '{' || c == '}' {
                    segment.clear();
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

fn is_in(file: &str, module: &str) -> bool {
    file == format!("{module}.rs") || file.starts_with(&format!("{module}/"))
}

#[test]
fn imports_are_found_in_groups_too() {
    let code = "use crate::{\n    ops::{a, b::c},\n    webhook::d,\n};\nuse crate::app::E;";
    assert_eq!(imports(code), ["ops", "webhook", "app"]);
}

#[test]
fn webhook_imports_nothing_of_ours_and_only_backwards() {
    const PATH: [&str; 8] =
        ["mangled", "secret", "signature", "headers", "media_type", "event", "payload", "filter"];
    let mut seen = BTreeSet::new();
    for (file, code) in house().iter().filter(|(file, _)| is_in(file, "webhook")) {
        assert_eq!(imports(code), Vec::<String>::new(), "{file}");
        for outside in ["tokio::", "hyper::", "std::net", "std::fs", "std::io", "SystemTime::now", "Instant"]
        {
            assert!(!code.contains(outside), "{file} is pure and must not use {outside}");
        }
        // The rooms of a file stand where it does.
        let place = PATH.iter().position(|name| is_in(file, &format!("webhook/{name}")));
        let Some(place) = place else {
            assert_eq!(file, "webhook.rs");
            continue;
        };
        seen.insert(place);
        for later in &PATH[place..] {
            let forms = [format!("super::{later}"), format!("    {later}::")];
            assert!(!forms.iter().any(|form| code.contains(form)), "{file} imports {later}");
        }
    }
    assert_eq!(seen.len(), PATH.len());
}

#[test]
fn what_does_io_does_not_import_each_other() {
    let mut seen = 0;
    for (file, code) in house() {
        let outside = |room: &str, allowed: &[&str]| {
            let imported = imports(&code);
            let foreign = imported.iter().filter(|module| !allowed.contains(&&***module)).count();
            assert!(!is_in(&file, room) || foreign == 0, "{file} imports {imported:?}");
            usize::from(is_in(&file, room))
        };
        seen += outside("upstream", &["net", "upstream"]);
        seen += outside("server", &["net", "server"]);
        seen += outside("net", &["net"]);
        seen += outside("files", &[]);
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn only_app_and_cli_import_config() {
    let mut importers = Vec::new();
    for (file, code) in house() {
        if imports(&code).iter().any(|module| module == "config") && !is_in(&file, "config") {
            assert!(is_in(&file, "app") || is_in(&file, "cli"), "{file} imports config");
            importers.push(file);
        }
    }
    assert!(!importers.is_empty());
}

#[test]
fn only_cli_and_main_print() {
    for (file, code) in house() {
        if !is_in(&file, "cli") && file != "main.rs" {
            assert!(!code.contains("println!") && !code.contains("stdout()"), "{file} prints");
        }
    }
}
