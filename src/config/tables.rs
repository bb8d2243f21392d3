//! Lists of tables, such as `[[webhook]]`: each table by its name, and what is around it.

use std::{collections::HashMap, time::Duration};

use toml::de::DeTable;

use super::{
    own::Own,
    reader::{Item, Table},
    report::quoted,
};

/// What the rest of the file means for webhooks and their destinations.
pub(super) struct Around {
    /// Deliveries go through a queue, so that a webhook may have several destinations.
    pub(super) queue: Option<Queued>,
    /// Where hookgate itself listens.
    pub(super) own: Own,
}

/// What a queue means for webhooks.
pub(super) struct Queued {
    /// `max_age`.
    pub(super) max_age: Duration,
    /// Whether it can keep an order.
    pub(super) ordered: bool,
}

/// The tables of a list of tables, each with its key's path ending in its name, or in its number where it has none.
pub(super) fn tables<'c>(
    item: &Item<'c>,
    example: &str,
    name: impl Fn(&DeTable<'_>, usize) -> Option<Result<String, &'static str>>,
) -> Vec<Table<'c>> {
    if item.value.is_table() {
        item.context.mistake(item.key_at, &item.key, format_args!("must be a list of tables: {example}"));
        return Vec::new();
    }
    let Some(items) = item.list(&format!("a list of tables: {example}")) else { return Vec::new() };
    let all = items.len();
    let named = (1..).zip(items).filter_map(|(number, item)| {
        let mut table = item.table(&format!("a table: {example}"))?;
        let name = name(table.entries(), all).and_then(Result::ok).unwrap_or_else(|| format!("{number}"));
        table.key = format!("{}.{name}", table.key);
        Some(table)
    });
    named.collect()
}

/// Values of which each may stand in one table only.
pub(super) struct Taken {
    key: &'static str,
    kind: &'static str,
    by: HashMap<String, usize>,
}

impl Taken {
    pub(super) fn new(key: &'static str, kind: &'static str) -> Self {
        Self { key, kind, by: HashMap::new() }
    }

    /// Notes a mistake where another table has the value already.
    pub(super) fn claim(&mut self, table: &Table<'_>, value: &str) {
        let Self { key, kind, by } = self;
        let written = table.find(key);
        let at = written.as_ref().map_or(table.at, |item| item.at);
        let Some(line) = by.get(value) else {
            by.insert(value.to_owned(), table.context.line(at));
            return;
        };
        if written.is_some() {
            let value = quoted(value);
            let text =
                format_args!("{value} is also the {key} of the {kind} in line {line}: each needs its own");
            table.context.mistake(at, &table.path(key), text);
        } else {
            let text = format_args!(
                "is missing, and the default one, made from the path, is also that of the {kind} in line {line}: write {key} = \"…\" in one of them"
            );
            table.context.mistake(at, &table.path(key), text);
        }
    }
}
