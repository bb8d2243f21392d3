//! Holds the rules of the house: who may import whom (see the crate's documentation).

#![expect(
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test may fail by a panic, in its helpers too"
)]

#[path = "house/imports.rs"]
mod imports;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use imports::Imports;

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

fn is_in(file: &str, module: &str) -> bool {
    file == format!("{module}.rs") || file.starts_with(&format!("{module}/"))
}

/// The imports of all files.
fn all_imports() -> Imports {
    let house = house();
    imports::of(house.iter().map(|(file, code)| (&**file, &**code)))
}

/// What each room may reach besides itself, over any number of files. What is not here is held by nothing.
const MAY_REACH: [(&str, &[&str]); 9] = [
    ("webhook", &[]),
    ("files", &[]),
    ("net", &[]),
    ("server", &["net"]),
    ("upstream", &["net"]),
    ("ops", &[]),
    ("delivery/parcel", &["webhook"]),
    ("delivery/queue", &["delivery/parcel", "files", "net", "webhook"]),
    ("delivery/format", &["delivery/parcel", "net", "upstream", "webhook"]),
];

fn is_of(file: &str, room: &str) -> bool {
    file == room || file.starts_with(&format!("{room}/"))
}

/// Where a room reaches what it must not.
fn forbidden(imports: &Imports) -> Vec<String> {
    let mut found = Vec::new();
    for (room, may) in MAY_REACH {
        for file in imports.keys().filter(|file| is_of(file, room)) {
            for other in imports::reached(imports, file) {
                // A door says what the rooms behind it are called, and is no way into them.
                let is_door = room.starts_with(&format!("{other}/"));
                if !is_of(other, room) && !is_door && !may.iter().any(|room| is_of(other, room)) {
                    found.push(format!("{file} reaches {other}"));
                }
            }
        }
    }
    for (file, imported) in imports {
        let joins = ["app", "cli", "config", "main"].iter().any(|room| is_of(file, room));
        if !joins && imported.iter().any(|other| is_of(other, "config")) {
            found.push(format!("{file} imports config"));
        }
    }
    found
}

#[test]
fn every_room_reaches_only_what_it_may() {
    let imports = all_imports();
    for (room, _) in MAY_REACH {
        assert!(imports.keys().any(|file| is_of(file, room)), "{room} is not there");
    }
    let reached = imports::reached(&imports, "ingress/receive");
    for room in ["server/state", "delivery/dispatch", "webhook/signature", "upstream", "net/target"] {
        assert!(reached.contains(room), "receive joins {room}: is it seen? {reached:?}");
    }
    assert_eq!(forbidden(&imports), [""; 0]);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    assert_eq!(imports::in_circles(&all_imports()), [""; 0]);
}

/// Each rule is seen to find what breaks it, by whatever way it is imported.
#[test]
fn what_breaks_a_rule_is_found() {
    let tree = [
        ("webhook.rs", "pub mod event;"),
        ("webhook/event.rs", "fn a() { let b = crate::net::target::parse(1); }"),
        ("net.rs", "pub mod target;\npub mod tls;"),
        ("net/target.rs", "use super::{tls::{self, Tls}, other};\nuse crate::config;"),
        ("net/tls.rs", "use super::target;\n#[cfg(test)]\nmod tests { use crate::app::App; }"),
        ("config.rs", "use crate::app as it;"),
        ("app.rs", "pub mod lanes;\nuse self::lanes::Lane;"),
        ("app/lanes.rs", "use super::App;\nuse std::net::TcpStream;"),
    ];
    let imports = imports::of(tree);
    let of = |file: &str| imports[file].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(of("webhook/event"), ["net/target"]);
    assert_eq!(of("net/target"), ["config", "net", "net/tls"]);
    assert_eq!(of("net/tls"), ["net/target"]);
    assert_eq!(of("config"), ["app"]);
    assert_eq!(of("app"), ["app/lanes"]);
    assert_eq!(of("app/lanes"), ["app"]);
    assert_eq!(imports::in_circles(&imports), ["net/target", "net/tls"]);
    let found = forbidden(&imports);
    for expected in
        ["webhook/event reaches net/target", "net/tls reaches config", "net/target imports config"]
    {
        assert!(found.iter().any(|found| found == expected), "{expected}: {found:?}");
    }
    assert!(!found.iter().any(|found| found.starts_with("app") || found.starts_with("config ")), "{found:?}");
}

/// On the path of a request, in its order: a file knows those before it only.
#[test]
fn webhook_is_pure_and_imports_backwards() {
    const PATH: [&str; 8] =
        ["mangled", "secret", "signature", "headers", "media_type", "event", "payload", "filter"];
    for (file, code) in house().iter().filter(|(file, _)| is_in(file, "webhook")) {
        for outside in ["tokio::", "hyper::", "std::net", "std::fs", "std::io", "SystemTime::now", "Instant"]
        {
            assert!(!code.contains(outside), "{file} is pure and must not use {outside}");
        }
    }
    let imports = all_imports();
    let place = |file: &str| PATH.iter().position(|name| is_of(file, &format!("webhook/{name}")));
    let mut seen = BTreeSet::new();
    for (file, imported) in imports.iter().filter(|(file, _)| file.starts_with("webhook/")) {
        let at = place(file).unwrap_or_else(|| panic!("{file} has no place on the path"));
        seen.insert(at);
        for other in imported.iter().filter_map(|other| place(other)) {
            assert!(other <= at, "{file} imports {}", PATH[other]);
        }
    }
    assert_eq!(seen.len(), PATH.len());
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
