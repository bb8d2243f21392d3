//! The program under test as a child process: a config made for it, its log, its metrics, its end.

use std::{
    collections::BTreeMap,
    fs::Permissions,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
    thread,
};

use serde_json::Value;

use super::{Address, Answer, Connection, Delivery, Journal, SECRET, TempDir, Upstream, eventually};

/// The program, without the caller's settings in its environment.
pub(crate) fn program() -> Command {
    program_by(&[])
}

/// The program, started by another one.
fn program_by(launcher: &[String]) -> Command {
    const PROGRAM: &str = env!("CARGO_BIN_EXE_hookgate");
    let mut command = match launcher {
        [] => Command::new(PROGRAM),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(PROGRAM);
            command
        }
    };
    command.env_remove("RUST_LOG").env_remove("HOOKGATE_CONFIG").stdin(Stdio::null());
    command
}

/// Runs a command of the program to its end, with this on its standard input.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(arguments: &[S], input: &[u8]) -> Output {
    let mut command = program();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that does not read its input may be gone already.
    drop(child.stdin.take().unwrap().write_all(input));
    child.wait_with_output().unwrap()
}

/// One `[[webhook]]` with its destination.
#[derive(Clone, Debug)]
pub(crate) struct Webhook {
    path: String,
    secret: String,
    events: String,
    lines: Vec<String>,
    url: String,
    destination_lines: Vec<String>,
}

impl Webhook {
    /// At `/hook`, for the group `environments`, with the usual secret.
    pub(crate) fn to(url: &str) -> Self {
        Self {
            path: "/hook".to_owned(),
            secret: "{ file = \"{dir}/secret\" }".to_owned(),
            events: "[\"environments\"]".to_owned(),
            lines: Vec::new(),
            url: url.to_owned(),
            destination_lines: Vec::new(),
        }
    }

    pub(crate) fn at(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    pub(crate) fn events<S: AsRef<str>>(mut self, events: &[S]) -> Self {
        let events: Vec<_> = events.iter().map(|event| format!("{:?}", event.as_ref())).collect();
        self.events = format!("[{}]", events.join(", "));
        self
    }

    /// The value of `secret` in TOML.
    pub(crate) fn secret(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.secret);
        self
    }

    /// A further line of the webhook.
    pub(crate) fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// A further line of its destination.
    pub(crate) fn destination(mut self, line: &str) -> Self {
        self.destination_lines.push(line.to_owned());
        self
    }

    fn toml(&self) -> String {
        format!(
            "\n[[webhook]]\npath = {:?}\nsecret = {}\nevents = {}\n{}\n\n[[webhook.destination]]\nurl = {:?}\n{}\n",
            self.path,
            self.secret,
            self.events,
            self.lines.join("\n"),
            self.url,
            self.destination_lines.join("\n"),
        )
    }
}

/// A config, and what is around the process. `{dir}` in it is the test's own folder.
#[derive(Debug)]
pub(crate) struct Setup {
    dir: TempDir,
    listen: String,
    ops_listen: String,
    server_lines: Vec<String>,
    sections: Vec<String>,
    webhooks: Vec<Webhook>,
    environment: Vec<(String, String)>,
    /// A program with arguments that the service is started by.
    launcher: Vec<String>,
}

impl Setup {
    /// One webhook in front of this upstream.
    pub(crate) fn new(upstream: &Upstream) -> Self {
        Self::bare().with(Webhook::to(&upstream.url()))
    }

    /// No webhook yet.
    pub(crate) fn bare() -> Self {
        let dir = TempDir::new();
        let secret = dir.write("secret", SECRET);
        // Nothing is to be warned of.
        std::fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
        Self {
            dir,
            listen: "127.0.0.1:0".to_owned(),
            ops_listen: "127.0.0.1:0".to_owned(),
            server_lines: Vec::new(),
            sections: Vec::new(),
            webhooks: Vec::new(),
            environment: Vec::new(),
            launcher: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, webhook: Webhook) -> Self {
        self.webhooks.push(webhook);
        self
    }

    pub(crate) fn listen(mut self, listen: &str) -> Self {
        listen.clone_into(&mut self.listen);
        self
    }

    pub(crate) fn ops_listen(mut self, listen: &str) -> Self {
        listen.clone_into(&mut self.ops_listen);
        self
    }

    /// A further line of `[server]`.
    pub(crate) fn server(mut self, line: &str) -> Self {
        self.server_lines.push(line.to_owned());
        self
    }

    /// A further section.
    pub(crate) fn section(mut self, toml: &str) -> Self {
        self.sections.push(toml.to_owned());
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has this program, such as `prlimit`, start the service.
    pub(crate) fn launched_by<S: AsRef<str>>(mut self, launcher: &[S]) -> Self {
        self.launcher = launcher.iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// A file in the test's own folder.
    pub(crate) fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.dir.write(name, content);
        self
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Changes the last webhook.
    fn change(mut self, change: impl FnOnce(Webhook) -> Webhook) -> Self {
        let webhook = self.webhooks.pop().expect("a webhook to change");
        self.with(change(webhook))
    }

    pub(crate) fn events<S: AsRef<str>>(self, events: &[S]) -> Self {
        self.change(|webhook| webhook.events(events))
    }

    pub(crate) fn secret(self, toml: &str) -> Self {
        self.change(|webhook| webhook.secret(toml))
    }

    pub(crate) fn webhook(self, line: &str) -> Self {
        self.change(|webhook| webhook.line(line))
    }

    pub(crate) fn destination(self, line: &str) -> Self {
        self.change(|webhook| webhook.destination(line))
    }

    /// Writes the config and returns where it is.
    pub(crate) fn write(&self) -> PathBuf {
        let mut config = format!(
            "[server]\nlisten = {:?}\n{}\n\n[ops]\nlisten = {:?}\n\n{}\n",
            self.listen,
            self.server_lines.join("\n"),
            self.ops_listen,
            self.sections.join("\n\n"),
        );
        for webhook in &self.webhooks {
            config.push_str(&webhook.toml());
        }
        let dir = self.dir.path().to_str().unwrap();
        self.dir.write("hookgate.toml", config.replace("{dir}", dir))
    }

    pub(crate) fn start(self) -> Hookgate {
        Hookgate::start(self)
    }

    /// Starts what does not say where it listens: on a unix socket that is known beforehand.
    pub(crate) fn start_unheard(self) -> Hookgate {
        Hookgate::start_unheard(self)
    }
}

/// The running service; killed at the end of the test.
#[derive(Debug)]
pub(crate) struct Hookgate {
    child: Child,
    config: PathBuf,
    setup: Setup,
    log: Arc<Journal<String>>,
    errors: Arc<Journal<String>>,
    webhook: Address,
    ops: Address,
}

impl Hookgate {
    fn start(setup: Setup) -> Self {
        let config = setup.write();
        let (child, log, errors) = launch(&setup, &config);
        let nowhere = Address::Unix(PathBuf::new());
        let mut this = Self { child, config, setup, log, errors, webhook: nowhere.clone(), ops: nowhere };
        this.webhook = this.listening("webhook");
        this.ops = this.listening("ops");
        this
    }

    fn start_unheard(setup: Setup) -> Self {
        let config = setup.write();
        let (child, log, errors) = launch(&setup, &config);
        let dir = setup.dir.path().to_str().unwrap();
        let webhook = Address::parse(&setup.listen.replace("{dir}", dir)).expect("an address");
        let ops = Address::Unix(PathBuf::new());
        let this = Self { child, config, setup, log, errors, webhook, ops };
        eventually("it listens", || this.webhook.connect().ok());
        this
    }

    /// Ends it by a signal, and starts it again with the config as it then is.
    #[track_caller]
    pub(crate) fn restart(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        self.come_back()
    }

    /// Waits until it has ended, and starts it again.
    #[track_caller]
    pub(crate) fn come_back(&mut self) -> ExitStatus {
        let ended = self.wait_exit();
        self.start_again();
        ended
    }

    /// Starts it again after its end.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.launch_again();
        self.webhook = self.listening("webhook");
        self.ops = self.listening("ops");
    }

    /// The same for one that may end again before it listens; how often it was started.
    #[track_caller]
    pub(crate) fn come_back_at_last(&mut self) -> usize {
        for starts in 1..100 {
            self.wait_exit();
            self.launch_again();
            let of =
                |listener| self.log.wait(|lines| lines.iter().find_map(|line| address_in(line, listener)));
            if let (Some(webhook), Some(ops)) = (of("webhook"), of("ops")) {
                (self.webhook, self.ops) = (webhook, ops);
                return starts;
            }
        }
        panic!("it never lives long enough to listen\n{}", self.everything());
    }

    fn launch_again(&mut self) {
        (self.child, self.log, self.errors) = launch(&self.setup, &self.config);
    }

    /// The next start does without this variable.
    pub(crate) fn forget(&mut self, variable: &str) {
        self.setup.environment.retain(|(name, _)| name != variable);
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Changes the text of the config, without more.
    #[track_caller]
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let config = std::fs::read_to_string(&self.config).unwrap();
        assert!(config.contains(from), "{from} is not in\n{config}");
        std::fs::write(&self.config, config.replace(from, to)).unwrap();
    }

    fn listening(&self, listener: &str) -> Address {
        let found = self.log.wait(|lines| lines.iter().find_map(|line| address_in(line, listener)));
        found.unwrap_or_else(|| panic!("no {listener} listener\n{}", self.everything()))
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where deliveries go.
    pub(crate) fn address(&self) -> &Address {
        &self.webhook
    }

    pub(crate) fn ops_address(&self) -> &Address {
        &self.ops
    }

    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    pub(crate) fn dir(&self) -> &Path {
        self.setup.dir()
    }

    /// Sends a delivery on a connection of its own.
    pub(crate) fn send(&self, delivery: &Delivery) -> Answer {
        delivery.send(&self.webhook)
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.webhook)
    }

    /// `GET` on the ops listener.
    pub(crate) fn ops(&self, path: &str) -> Answer {
        let mut connection = Connection::open(&self.ops);
        connection
            .send(format!("GET {path} HTTP/1.1\r\nHost: ops.test\r\nConnection: close\r\n\r\n").as_bytes());
        connection.answer()
    }

    /// The metrics for a scraper that accepts this; `""` says nothing about it.
    pub(crate) fn scrape(&self, accept: &str) -> Answer {
        let accept = if accept.is_empty() { String::new() } else { format!("Accept: {accept}\r\n") };
        let mut connection = Connection::open(&self.ops);
        let head = format!("GET /metrics HTTP/1.1\r\nHost: ops.test\r\n{accept}Connection: close\r\n\r\n");
        connection.send(head.as_bytes());
        connection.answer()
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let answer = self.ops("/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        Metrics::parse(&answer.text())
    }

    /// Waits until a metric has a value; it may be written after the answer is on its way.
    #[track_caller]
    pub(crate) fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut last = None;
        let what = format!("{name}{labels:?} = {value}");
        eventually(&what, || {
            let metrics = self.metrics();
            last = metrics.value(name, labels);
            (last == Some(value)).then_some(())
        });
    }

    /// Every line of the log until now.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.log.all()
    }

    pub(crate) fn error_lines(&self) -> Vec<String> {
        self.errors.all()
    }

    /// Waits for a line of the JSON log.
    #[track_caller]
    pub(crate) fn wait_for_log(&self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let found = self.log.wait(|lines| lines.iter().map(|line| json(line)).find(|line| wanted(line)));
        found.unwrap_or_else(|| panic!("the log has no such line\n{}", self.everything()))
    }

    /// Waits for a line of the log in any format.
    #[track_caller]
    pub(crate) fn wait_for_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        let found = self.log.wait(|lines| lines.iter().find(|line| wanted(line)).cloned());
        found.unwrap_or_else(|| panic!("the log has no such line\n{}", self.everything()))
    }

    /// The log's line of the delivery with this ID.
    #[track_caller]
    pub(crate) fn line_of(&self, id: &str) -> Value {
        self.wait_for_log(|line| line["delivery.id"] == id)
    }

    /// Sends the process a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(status.success(), "kill -s {name} {id}: {status}");
    }

    /// A line of `/proc/PID/status`, such as `VmRSS`, in KiB.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many descriptors the process has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Waits for the end of the process; its log's end is the sign.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        assert!(self.log.wait_closed(), "the process does not end\n{}", self.everything());
        self.child.wait().unwrap()
    }

    fn everything(&self) -> String {
        let config = std::fs::read_to_string(&self.config).unwrap_or_default();
        let (log, errors) = (self.log.all().join("\n"), self.errors.all().join("\n"));
        format!("-- config\n{config}\n-- stdout\n{log}\n-- stderr\n{errors}")
    }
}

impl Drop for Hookgate {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            eprintln!("{}", self.everything());
        }
    }
}

type Launched = (Child, Arc<Journal<String>>, Arc<Journal<String>>);

/// The process, its log and what it says on standard error.
fn launch(setup: &Setup, config: &Path) -> Launched {
    let dir = setup.dir.path().to_str().unwrap();
    let launcher: Vec<_> = setup.launcher.iter().map(|word| word.replace("{dir}", dir)).collect();
    let mut command = program_by(&launcher);
    command.arg("run").arg("--config").arg(config).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.envs(setup.environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.spawn().unwrap();
    let log = journal_of(child.stdout.take().unwrap());
    let errors = journal_of(child.stderr.take().unwrap());
    (child, log, errors)
}

/// The lines of a stream, read on a thread of its own.
pub(super) fn journal_of(stream: impl Read + Send + 'static) -> Arc<Journal<String>> {
    let journal = Arc::new(Journal::default());
    let for_thread = Arc::clone(&journal);
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            for_thread.push(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
            line.clear();
        }
        for_thread.close();
    });
    journal
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or(Value::Null)
}

/// The address in a "listening" line of either format.
fn address_in(line: &str, listener: &str) -> Option<Address> {
    let fields = json(line);
    if fields.is_object() {
        let is_it = fields["message"] == "listening" && fields["listener"] == listener;
        return is_it.then(|| Address::parse(fields["address"].as_str().unwrap()).unwrap());
    }
    let is_it = line.contains("listening") && line.contains(listener);
    let mut words = line.split([' ', '=', '"']).filter(|_| is_it);
    words.find_map(|word| if word.contains(':') { Address::parse(word) } else { None })
}

/// What `/metrics` says.
#[derive(Debug)]
pub(crate) struct Metrics(Vec<(String, BTreeMap<String, String>, f64)>);

impl Metrics {
    /// Reads Prometheus text.
    pub(crate) fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let value = value.parse().unwrap_or_else(|_| panic!("a number: {line}"));
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            (name.to_owned(), labels_in(labels.trim_end_matches('}')), value)
        };
        Self(text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(sample).collect())
    }

    /// The value of the series with exactly these labels, in any order.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let same = |seen: &BTreeMap<String, String>| {
            seen.len() == labels.len()
                && labels.iter().all(|(key, value)| seen.get(*key).is_some_and(|seen| seen == value))
        };
        let mut found = self.0.iter().filter(|(seen, with, _)| seen == name && same(with));
        let value = found.next().map(|(_, _, value)| *value);
        assert!(found.next().is_none(), "{name}{labels:?} comes twice: {self:?}");
        value
    }

    /// The label sets of a name.
    pub(crate) fn labels(&self, name: &str) -> Vec<&BTreeMap<String, String>> {
        self.0.iter().filter(|(seen, _, _)| seen == name).map(|(_, labels, _)| labels).collect()
    }
}

/// Reads `a="b",c="d"`; no value of ours contains a quotation mark.
fn labels_in(text: &str) -> BTreeMap<String, String> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once("=\"").expect("a label");
        (name.trim_start_matches(',').to_owned(), value.to_owned())
    };
    text.split_inclusive('"')
        .collect::<Vec<_>>()
        .chunks(2)
        .map(|halves| pair(halves.concat().strip_suffix('"').expect("a closed label")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_whatever_the_order_of_labels() {
        let text = "# HELP x_total X.\n# TYPE x_total counter\nx_total{b=\"2\",a=\"1\"} 3\ny 0.5\n# EOF\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.value("x_total", &[("a", "1"), ("b", "2")]), Some(3.0));
        assert_eq!(metrics.value("x_total", &[("a", "1")]), None);
        assert_eq!(metrics.value("y", &[]), Some(0.5));
        assert_eq!(metrics.labels("x_total").len(), 1);
    }

    #[test]
    fn addresses_are_read_from_both_formats() {
        let address = Address::parse("127.0.0.1:80");
        let json = r#"{"message":"listening","listener":"ops","address":"127.0.0.1:80"}"#;
        assert_eq!(address_in(json, "ops"), address);
        assert_eq!(address_in(json, "webhook"), None);
        let text = "2026-01-01T00:00:00Z  INFO listening listener=\"ops\" address=127.0.0.1:80";
        assert_eq!(address_in(text, "ops"), address);
        assert_eq!(address_in("INFO listening listener=ops address=\"127.0.0.1:80\"", "ops"), address);
    }
}
