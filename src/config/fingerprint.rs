//! What each key says, as a number: enough to tell that it has changed, and too little to tell what it says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use toml::de::{DeTable, DeValue};
use xxhash_rust::xxh3::Xxh3;

use super::names::{destination_name, name_of};

/// What the content of files was, by their paths.
pub(super) type Contents = HashMap<PathBuf, u64>;

/// A configuration, key by key.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Fingerprints {
    /// By the key's path: `webhook.esc.events`.
    keys: BTreeMap<String, u64>,
    /// The paths of tables.
    tables: BTreeSet<String>,
}

/// Secrets are among what was counted.
impl fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprints(..)")
    }
}

/// The beginning of the SHA-256 of a file, to compare it with that of others.
pub(super) fn digest(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content).get(..6).unwrap_or_default())
}

/// The content of a file that a key names.
pub(super) fn content(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

impl Fingerprints {
    pub(super) fn of(tree: &DeTable<'_>, contents: &Contents) -> Self {
        let mut prints = Self::default();
        for (section, value) in tree {
            let section: &str = section.get_ref();
            match value.get_ref() {
                DeValue::Table(table) => prints.table(section.to_owned(), table, contents),
                list if section == "webhook" => {
                    for table in tables(list) {
                        if let Some(Ok(name)) = name_of(table) {
                            prints.table(format!("webhook.{name}"), table, contents);
                        }
                    }
                }
                value => prints.key(section.to_owned(), value, contents),
            }
        }
        prints
    }

    fn table(&mut self, path: String, table: &DeTable<'_>, contents: &Contents) {
        for (key, value) in table {
            let key: &str = key.get_ref();
            if key == "destination" {
                let number = tables(value.get_ref()).count();
                for table in tables(value.get_ref()) {
                    if let Some(name) = destination_name(table, number) {
                        self.table(format!("{path}.destination.{name}"), table, contents);
                    }
                }
            } else {
                self.key(format!("{path}.{key}"), value.get_ref(), contents);
            }
        }
        self.tables.insert(path);
    }

    fn key(&mut self, path: String, value: &DeValue<'_>, contents: &Contents) {
        let mut print = Xxh3::new();
        add(&mut print, value, contents);
        self.keys.insert(path, print.digest());
    }

    /// The keys that say something else in `new`, in order. Of a table that only one of the two has, its path alone.
    #[must_use]
    pub fn changed(&self, new: &Self) -> Vec<String> {
        let differs = |key: &&String| self.keys.get(*key) != new.keys.get(*key);
        let keys: BTreeSet<_> = self.keys.keys().chain(new.keys.keys()).filter(differs).collect();
        let of_one: Vec<_> = self.tables.symmetric_difference(&new.tables).collect();
        let told = |key: &String| {
            let within =
                |table: &&&String| key.strip_prefix(table.as_str()).is_some_and(|rest| rest.starts_with('.'));
            of_one.iter().find(within).map_or_else(|| key.clone(), |table| (*table).clone())
        };
        let mut changed: Vec<_> = keys.into_iter().map(told).collect();
        changed.dedup();
        changed
    }
}

fn tables<'v>(list: &'v DeValue<'v>) -> impl Iterator<Item = &'v DeTable<'v>> {
    list.as_array().into_iter().flatten().filter_map(|item| item.get_ref().as_table())
}

/// Adds a value, wherever it stands in the file, and what is in a file that it names.
fn add(print: &mut Xxh3, value: &DeValue<'_>, contents: &Contents) {
    let mut text = |tag: u8, text: &str| {
        print.update(&[tag]);
        print.update(&text.len().to_le_bytes());
        print.update(text.as_bytes());
    };
    match value {
        DeValue::String(string) => {
            text(b's', string);
            if let Some(content) = contents.get(Path::new(string.as_ref())) {
                print.update(&content.to_le_bytes());
            }
        }
        DeValue::Integer(number) => text(b'i', &number.to_string()),
        DeValue::Float(number) => text(b'f', &number.to_string()),
        DeValue::Boolean(yes) => text(b'b', if *yes { "true" } else { "false" }),
        DeValue::Datetime(time) => text(b'd', &time.to_string()),
        DeValue::Array(list) => {
            text(b'[', "");
            for member in list {
                add(print, member.get_ref(), contents);
            }
            print.update(b"]");
        }
        DeValue::Table(table) => {
            text(b'{', "");
            let mut members: Vec<_> = table.iter().map(|(key, value)| (key.get_ref(), value)).collect();
            members.sort_by_key(|(key, _)| *key);
            for (key, value) in members {
                print.update(&key.len().to_le_bytes());
                print.update(key.as_bytes());
                add(print, value.get_ref(), contents);
            }
            print.update(b"}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
log.level = "info"
[server]
listen = "127.0.0.1:1"
[[webhook]]
name = "esc"
path = "/esc"
secret = [{ name = "new", file = "secret" }, { env = "OLD" }]
events = ["environments"]
[[webhook.destination]]
url = "http://app/"
headers = { B = "2", A = { file = "token" } }
"#;

    fn prints(text: &str, secret: u64) -> Fingerprints {
        let contents = Contents::from([("secret".into(), secret), ("token".into(), 1)]);
        Fingerprints::of(DeTable::parse(text).unwrap().get_ref(), &contents)
    }

    #[test]
    fn what_changed_is_told_by_its_key() {
        let old = prints(FILE, 1);
        for (from, to, changed) in [
            ("[server]", "# a comment\n\n[server]", &[][..]),
            ("{ B = \"2\", A", "{ A = { file = \"token\" }, B = \"2\" } # A", &[]),
            ("\"info\"", "\"warn\"", &["log.level"]),
            ("log.level = \"info\"", "", &["log"]),
            ("[server]", "[server]\nmax_body = \"1MiB\"", &["server.max_body"]),
            ("[\"environments\"]", "[\"stacks\"]", &["webhook.esc.events"]),
            ("OLD", "OLDER", &["webhook.esc.secret"]),
            ("http://app/", "http://app/x", &["webhook.esc.destination.default.url"]),
            ("\"2\"", "\"3\"", &["webhook.esc.destination.default.headers"]),
            ("\"esc\"", "\"other\"", &["webhook.esc", "webhook.other"]),
        ] {
            let new = FILE.replacen(from, to, 1);
            assert_ne!(new, FILE);
            let found = old.changed(&prints(&new, 1));
            assert_eq!(found, changed, "{from} to {to}");
        }
        assert_eq!(old.changed(&prints(FILE, 2)), ["webhook.esc.secret"]);
    }
}
