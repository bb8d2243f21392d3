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

/// A file's code without its inline tests, or nothing for a file of tests.
fn shipped<'c>(file: &str, code: &'c str) -> &'c str {
    let is_tests = file.ends_with("/tests.rs") || file.contains("/tests/");
    if is_tests { "" } else { code.split("#[cfg(test)]").next().unwrap_or_default() }
}

/// The one way around the signature is for the readers of stores: what they read was verified before it was kept.
#[test]
fn only_stores_take_a_body_for_verified() {
    let mut users = BTreeSet::new();
    for (file, code) in house() {
        let code = shipped(&file, &code);
        // By another name it could be called unseen.
        let forms =
            ["VerifiedBody::stored", "VerifiedBody as ", "= VerifiedBody;", "fn stored(bytes: Bytes)"];
        if forms.iter().any(|form| code.contains(form)) {
            users.insert(file);
        }
    }
    let known = ["delivery/queue/nats/wire.rs", "delivery/queue/sqlite/rows.rs", "webhook/signature.rs"];
    assert_eq!(users, known.map(str::to_owned).into());
}

/// What is handed on is a leaf: through it, stores would reach whatever it imports.
#[test]
fn stores_know_of_delivery_only_what_is_handed_on() {
    let mut seen = 0;
    for (file, code) in house() {
        let code = shipped(&file, &code);
        if file == "delivery/parcel.rs" {
            assert!(
                imports(code).iter().all(|module| module == "webhook"),
                "{file} imports {:?}",
                imports(code)
            );
            assert!(!code.contains("super::"), "{file} imports from its own room");
            seen += 1;
        }
        if is_in(&file, "delivery/queue") {
            for other in ["attempt", "circuit", "dedupe", "destination", "dispatch", "worker"] {
                assert!(!code.contains(&format!("{other}::")), "{file} imports {other}");
            }
            assert!(
                !code.contains("upstream::") && !code.contains("ops::"),
                "{file} imports upstream or ops"
            );
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
}

/// What must not come back: phrases that are not English, or hide who does what, each with what to write instead.
const RIDDLES: [(&str, &str); 12] = [
    ("is no ", "is not a"),
    ("are no ", "are not"),
    ("is none", "is not one; does not have one"),
    ("are none", "are not; do not have any"),
    ("has to ", "must"),
    ("have to ", "must"),
    ("having to ", "must"),
    ("never not", "always"),
    ("come about", "happen, succeed"),
    ("comes about", "happens, succeeds"),
    ("doubtful", "say what is wrong"),
    ("handed on", "forwarded, delivered"),
];

/// What looks like one of them and is plain.
const PLAIN: [&str; 8] = [
    "there is no ",
    "there are no ",
    "there is none",
    "there are none",
    "is no longer",
    "is no more",
    "are no longer",
    "are no more",
];

/// The riddles in a text.
fn riddles(text: &str) -> Vec<&'static str> {
    let mut text = text.to_lowercase();
    for plain in PLAIN {
        text = text.replace(plain, "");
    }
    let words = |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric());
    RIDDLES
        .iter()
        .filter(|(riddle, _)| text.match_indices(riddle).any(|(at, _)| words(at)))
        .map(|(riddle, _)| *riddle)
        .collect()
}

/// The string literals and doc comments of a source file, by line. A literal that goes over several lines is found on each.
fn prose(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (number, line) in source.lines().enumerate() {
        let trimmed = line.trim_start();
        let mut text = String::new();
        if !inside && trimmed.starts_with("//") {
            if trimmed.starts_with("///") || trimmed.starts_with("//!") {
                text.push_str(trimmed);
            }
        } else {
            let mut before = ' ';
            for c in line.chars() {
                if c == '"' && before != '\\' && (before != '\'' || inside) {
                    inside = !inside;
                    text.push('\n');
                } else if inside {
                    text.push(c);
                }
                before = if before == '\\' && c == '\\' { ' ' } else { c };
            }
            // Raw strings keep their backslashes, and may leave this out of step: a literal ends with its line unless
            // the line says that it goes on.
            inside = inside && line.trim_end().ends_with('\\');
        }
        found.push((number + 1, text));
    }
    found
}

#[test]
fn riddles_are_found() {
    assert_eq!(riddles("This is no URL, and it has to be one"), ["is no ", "has to "]);
    assert_eq!(riddles("There is no URL. It is no longer used."), [""; 0]);
    assert_eq!(riddles("its basis no one knows"), [""; 0]);
    let source = "/// It is none.\nlet a = b; // has to\nerror(\"it \\\"is none\\\" \\\n  and has to be\")";
    let found: Vec<_> = prose(source)
        .into_iter()
        .flat_map(|(line, text)| riddles(&text).into_iter().map(move |riddle| (line, riddle)))
        .collect();
    assert_eq!(found, [(1, "is none"), (3, "is none"), (4, "has to ")]);
}

/// In what people read: messages, documentation, documents. Tests in source files may quote.
#[test]
fn what_people_read_is_plain() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = Vec::new();
    for path in sources(&top.join("src")) {
        let source = fs::read_to_string(&path).unwrap();
        texts.extend(prose(&source).into_iter().map(|(line, text)| (path.clone(), line, text)));
    }
    let mut documents: Vec<_> = ["README.md", "SECURITY.md", "CHANGELOG.md", "config.example.toml"]
        .iter()
        .map(|name| top.join(name))
        .collect();
    documents.extend(fs::read_dir(top.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    for path in documents.into_iter().filter(|path| path.is_file()) {
        let text = fs::read_to_string(&path).unwrap();
        texts.extend(text.lines().enumerate().map(|(line, text)| (path.clone(), line + 1, text.to_owned())));
    }
    assert!(texts.len() > 20_000, "{}", texts.len());
    let found: Vec<_> = texts
        .iter()
        .flat_map(|(path, line, text)| {
            riddles(text).into_iter().map(move |riddle| {
                let instead = RIDDLES.iter().find(|(other, _)| *other == riddle).unwrap().1;
                format!("{}:{line}: \"{riddle}\": write \"{instead}\": {}", path.display(), text.trim())
            })
        })
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}
