//! `hookgate send`: a sample delivery as Pulumi would send it, or a body of one's own, posted to any URL.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, TRANSFER_ENCODING, USER_AGENT,
    },
};

use super::{
    Ended, Failure,
    ask::ask,
    block_on,
    input::{self, NoSecret, Source},
    output::{Out, printable},
};
use crate::{
    files,
    net::{
        client::{Answer, BodyEnd},
        target::{Address, Target, TargetError},
        tls::Authorities,
    },
    webhook::{
        event::{EVENTS, Event, Group, Kind},
        headers, signature,
    },
};

const EXAMPLES: &str = "\
Examples:
  hookgate send --event environment_revision_created --secret-file secret.txt \\
      --url http://127.0.0.1:8080/webhooks/pulumi
  hookgate send --body delivery.json --kind environment --secret-env WEBHOOK_SECRET \\
      --url https://hooks.example.com/pulumi
  hookgate send --event environment_created --secret-file secret.txt --ca ca.pem \\
      --url https://127.0.0.1:8443/webhooks/pulumi
  hookgate send --event ping --unsigned --url http://127.0.0.1:8080/webhooks/pulumi

It prints what was sent and the answer; the last of these must be refused.
Exit status: 0 the answer is a 2xx, 1 it is not, or there was no answer.";

/// Arguments of `send`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub(super) struct Args {
    /// The event whose sample is sent (`hookgate send --help` lists them)
    #[arg(long, value_name = "NAME", value_parser = event)]
    #[arg(required_unless_present = "body", conflicts_with = "body")]
    event: Option<&'static Event>,
    /// A body to send instead of a sample; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "kind")]
    body: Option<PathBuf>,
    /// The kind that the header claims [default: that of the event]
    #[arg(long, value_name = "KIND", value_parser = header_value)]
    kind: Option<HeaderValue>,
    /// Where to: http://, https:// or unix:/SOCKET:/PATH
    #[arg(long, value_name = "URL", value_parser = url)]
    url: Url,
    /// The file that holds the webhook's secret; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "secret_env")]
    #[arg(required_unless_present_any = ["secret_env", "unsigned"])]
    secret_file: Option<PathBuf>,
    #[command(flatten)]
    _no_secret: NoSecret,
    /// The environment variable that holds the webhook's secret
    #[arg(long, value_name = "NAME")]
    secret_env: Option<String>,
    /// Leave the signature out
    #[arg(long)]
    unsigned: bool,
    /// The delivery's ID [default: a random UUID]
    #[arg(long, value_name = "ID", value_parser = header_value)]
    id: Option<HeaderValue>,
    /// A further header, or one that replaces what would be sent; may be given again
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// https: a PEM file with the authorities to trust instead of the platform's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How long to wait for the answer, e.g. 500ms or 10s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = input::duration)]
    timeout: Duration,
}

/// A URL as it was given, and what it means.
#[derive(Debug, Clone)]
struct Url {
    given: String,
    target: Target,
}

/// Sends one delivery.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let source =
        Source::one(args.secret_file.as_deref(), args.secret_env.as_deref()).filter(|_| !args.unsigned);
    let body = match args.event {
        Some(event) => event.sample_body().into_bytes(),
        None => input::body(args.body.as_deref(), &source.iter().collect::<Vec<_>>())?,
    };
    let kind = match (&args.kind, args.event) {
        (Some(kind), _) => kind.clone(),
        (None, Some(event)) => HeaderValue::from_static(event.sample_kind()),
        (None, None) => return Err(Failure::Usage("no kind: give --kind KIND with --body".into())),
    };
    let id = args.id.clone().unwrap_or_else(random_id);
    let trust = args.ca.as_deref().map(|ca| authorities(ca, &args.url.target)).transpose()?;
    let signature =
        source.map(|source| source.secret()).transpose()?.map(|secret| signature::sign(&secret, &body));

    let mut request = delivery(Bytes::from(body), id, kind, signature.as_deref());
    replace(request.headers_mut(), &args.headers);
    describe(args, &request, out)?;
    let answer = block_on(async {
        let answer = ask(&args.url.target, request, args.timeout, trust.as_ref()).await;
        answer.map_err(|error| Failure::Failed(error.to_string()))
    })?;
    show(&answer, out)?;
    Ok(if answer.status.is_success() { Ended::Well } else { Ended::Badly })
}

/// The authorities in the file of `--ca`.
fn authorities(ca: &Path, target: &Target) -> Result<Authorities, Failure> {
    if !matches!(target.address, Address::Tcp { tls: true, .. }) {
        return Err(Failure::Usage("--ca only applies to https URLs, and this one is not".into()));
    }
    /// The longest file, in bytes.
    const MAX: usize = 1 << 20;
    let wrong = |what: &dyn std::fmt::Display| Failure::Usage(format!("--ca: {what}"));
    let pem = files::read(ca, MAX, files::PATIENCE).map_err(|error| wrong(&error))?.bytes;
    Authorities::parse(&pem).map_err(|error| wrong(&format_args!("{}: {error}", ca.display())))
}

/// A request as Pulumi makes it.
pub(super) fn delivery(
    body: Bytes,
    id: HeaderValue,
    kind: HeaderValue,
    signature: Option<&str>,
) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("hookgate/", env!("CARGO_PKG_VERSION"))));
    headers.insert(headers::ID, id);
    headers.insert(headers::KIND, kind);
    // Always 64 hex digits, or what the caller wants to be refused.
    if let Some(signature) = signature.and_then(|signature| HeaderValue::from_str(signature).ok()) {
        headers.insert(headers::SIGNATURE, signature);
    }
    request
}

/// A random (version 4) UUID, as Pulumi's IDs are. It must be new, not secret.
pub(super) fn random_id() -> HeaderValue {
    let random = fastrand::u128(..);
    let version_4 = random & !(0xf << 76) | 4 << 76;
    let digits = format!("{:032x}", version_4 & !(0b11 << 62) | 0b10 << 62);
    let mut id = String::with_capacity(36);
    for (place, digit) in digits.chars().enumerate() {
        if matches!(place, 8 | 12 | 16 | 20) {
            id.push('-');
        }
        id.push(digit);
    }
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("hookgate"))
}

/// The headers of the command line: a name that is given replaces what is there, however often it is given.
fn replace(headers: &mut HeaderMap, given: &[(HeaderName, HeaderValue)]) {
    for (name, _) in given {
        headers.remove(name);
    }
    for (name, value) in given {
        headers.append(name, value.clone());
    }
}

fn describe(args: &Args, request: &Request<Full<Bytes>>, out: &mut Out<impl Write>) -> Result<(), Failure> {
    use hyper::body::Body;

    let value = |name| {
        let values: Vec<_> =
            request.headers().get_all(name).iter().map(|value| printable(value.as_bytes(), false)).collect();
        if values.is_empty() { "none".to_owned() } else { values.join(", ") }
    };
    writeln!(out, "sending to {}", args.url.given)?;
    if let Some(event) = args.event {
        writeln!(out, "  event      {}", event.name)?;
    }
    writeln!(out, "  kind       {}", value(headers::KIND))?;
    writeln!(out, "  id         {}", value(headers::ID))?;
    writeln!(out, "  body       {} bytes", request.body().size_hint().exact().unwrap_or_default())?;
    let signed = request.headers().contains_key(headers::SIGNATURE);
    writeln!(out, "  signature  {}", if signed { "present" } else { "none" })?;
    if args.event.is_some_and(|event| !event.is_published()) {
        writeln!(
            out,
            "  note       Pulumi has not published what this event looks like: kind and body are a guess"
        )?;
    }
    writeln!(out)
}

fn show(answer: &Answer, out: &mut Out<impl Write>) -> Result<(), Failure> {
    writeln!(out, "answer")?;
    writeln!(out, "  {:?} {}", answer.version, answer.status)?;
    for (name, value) in &answer.headers {
        writeln!(out, "  {}: {}", title_case(name.as_str()), printable(value.as_bytes(), false))?;
    }
    if !answer.body.is_empty() {
        writeln!(out, "\n{}", printable(&answer.body, true).trim_end_matches('\n'))?;
    }
    match answer.end {
        BodyEnd::Complete => Ok(()),
        BodyEnd::Capped => writeln!(out, "(more than 64 KiB: the rest is left out)"),
        BodyEnd::BrokenOff => writeln!(out, "(the body broke off here)"),
    }
}

/// As the name stands on the wire: the parser has it in lower case.
fn title_case(name: &str) -> String {
    let mut start = true;
    let mut upper = |c: char| {
        let c = if start { c.to_ascii_uppercase() } else { c };
        start = c == '-';
        c
    };
    name.chars().map(&mut upper).collect()
}

fn event(name: &str) -> Result<&'static Event, String> {
    if let Some(event) = Event::find(name) {
        return Ok(event);
    }
    let members = |is_member: &dyn Fn(&Event) -> bool| {
        let names: Vec<_> = EVENTS.iter().filter(|event| is_member(event)).map(|event| event.name).collect();
        names.join(", ")
    };
    if Kind::find(name).is_some() {
        return Err(format!("that is a kind; its events are {}", members(&|event| event.kind == Some(name))));
    }
    if let Some(group) = Group::ALL.into_iter().find(|group| group.name() == name) {
        return Err(format!(
            "that is a group; its events are {}",
            members(&|event| event.group == Some(group))
        ));
    }
    let likeness = |event: &Event| strsim::jaro_winkler(event.name, name);
    let nearest = EVENTS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|event| likeness(event) > 0.75) {
        Some(nearest) => Err(format!("no such event; did you mean `{}`?", nearest.name)),
        None => Err("no such event: `hookgate send --help` lists them".into()),
    }
}

fn long_help() -> String {
    let list = |group: Option<Group>| {
        let names: Vec<_> =
            EVENTS.iter().filter(|event| event.group == group).map(|event| event.name).collect();
        format!("  {}:\n    {}", group.map_or("in no group", Group::name), names.join("\n    "))
    };
    let groups: Vec<_> = Group::ALL.into_iter().map(Some).chain([None]).map(list).collect();
    format!("{EXAMPLES}\n\nEvents, by group:\n{}", groups.join("\n"))
}

fn url(given: &str) -> Result<Url, TargetError> {
    Ok(Url { given: given.to_owned(), target: Target::parse(given)? })
}

fn header_value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text).or(Err("it has characters that no header can carry".into()))
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as 'Name: value'")?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).or(Err("that is not a header name"))?;
    if [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION].contains(&name) {
        return Err("hookgate sets that header itself: it says how the message is framed".into());
    }
    Ok((name, header_value(value.trim())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::headers::{DeliveryId, EventKind};

    #[test]
    fn ids_are_new_version_4_uuids() {
        let (one, two) = (random_id(), random_id());
        assert_ne!(one, two);
        let text = one.to_str().unwrap();
        let groups: Vec<_> = text.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert_eq!(text.as_bytes()[14], b'4', "{text}");
        assert!(b"89ab".contains(&text.as_bytes()[19]), "{text}");
        assert!(DeliveryId::parse(one.as_bytes()).is_ok());
    }

    #[test]
    fn every_event_can_be_sent() {
        for known in EVENTS {
            assert_eq!(event(known.name).unwrap().name, known.name);
            assert!(EventKind::parse(known.sample_kind().as_bytes()).is_ok(), "{}", known.name);
            assert!(long_help().contains(known.name), "{}", known.name);
        }
    }

    #[test]
    fn a_name_that_is_no_event_is_explained() {
        let error = |name| event(name).unwrap_err();
        assert!(error("environment_revision_create").contains("`environment_revision_created`"));
        assert!(error("enviroment_created").contains("`environment_created`"));
        assert!(
            error("environment_revision")
                .contains("environment_revision_created, environment_revision_retracted")
        );
        assert!(error("policies").contains("policy_violation_mandatory"));
        assert!(error("xyz").contains("--help"));
    }

    #[test]
    fn headers_are_written_with_a_colon() {
        let (name, value) = header("X-Test:  a:b ").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-test", "a:b"));
        for wrong in
            ["X-Test", ": x", "X Test: y", "X-Test: a\nb", "Content-Length: 5", "transfer-encoding: chunked"]
        {
            assert!(header(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn given_headers_replace_and_repeat() {
        let mut request = delivery(Bytes::new(), random_id(), HeaderValue::from_static("ping"), Some("00"));
        let given = ["Pulumi-Webhook-Kind: a", "pulumi-webhook-kind: b", "X-More: c"]
            .map(|text| header(text).unwrap());
        replace(request.headers_mut(), &given);
        let kinds: Vec<_> = request.headers().get_all(headers::KIND).iter().collect();
        assert_eq!(kinds, ["a", "b"]);
        assert_eq!(request.headers().get_all(headers::SIGNATURE).iter().count(), 1);
        assert_eq!(request.headers().get("x-more").unwrap(), "c");
    }

    #[test]
    fn names_are_shown_in_title_case() {
        assert_eq!(title_case("hookgate-outcome"), "Hookgate-Outcome");
        assert_eq!(title_case("etag"), "Etag");
    }
}
