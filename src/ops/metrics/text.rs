//! The two forms in which metrics are written, and which of them is asked for.
//!
//! The registry writes OpenMetrics, and the series of a family in whatever order a table of hashes has them. Here they
//! get a fixed order, so that two scrapes can be compared, and, for whoever does not read OpenMetrics, the names and types
//! of Prometheus' own text format.

use hyper::{HeaderMap, header::ACCEPT};

/// A form of writing metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Form {
    /// Its media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What a scraper wants: OpenMetrics if it asks for it by name, and for nothing else more.
    #[must_use]
    pub fn asked(headers: &HeaderMap) -> Self {
        let (mut open_metrics, mut text) = (0, None);
        for range in headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()) {
            for range in range.split(',') {
                let mut parts = range.split(';').map(str::trim);
                let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
                let (mut weight, mut known) = (1000, true);
                for parameter in parts {
                    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                    let value = value.trim().trim_matches('"');
                    match name.trim().to_ascii_lowercase().as_str() {
                        "q" => weight = thousandths(value),
                        "version" => known = matches!(value, "1.0.0" | "0.0.1"),
                        _ => {}
                    }
                }
                // What says more counts, wherever it stands.
                let exact = match media_type.as_str() {
                    "application/openmetrics-text" if known => {
                        open_metrics = open_metrics.max(weight);
                        continue;
                    }
                    "text/plain" => 2,
                    "text/*" => 1,
                    "*/*" => 0,
                    _ => continue,
                };
                text = text.max(Some((exact, weight)));
            }
        }
        let text = text.map_or(0, |(_, weight)| weight);
        if open_metrics > 0 && open_metrics >= text { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Puts what the registry has written into order and form.
    pub(super) fn write(self, registry: &str) -> String {
        let mut written = String::with_capacity(registry.len());
        let mut family = Family::default();
        for line in registry.lines() {
            let comment =
                line.strip_prefix("# ").map(|comment| comment.split_once(' ').unwrap_or((comment, "")));
            match comment {
                Some(("HELP", rest)) => {
                    family.finish(self, &mut written);
                    family.help = rest.split_once(' ').unwrap_or((rest, ""));
                }
                Some(("TYPE", rest)) => family.kind = rest.split_once(' ').unwrap_or((rest, "")).1,
                Some(_) => {}
                None => family.series.push(line),
            }
        }
        family.finish(self, &mut written);
        if self == Self::OpenMetrics {
            written.push_str("# EOF\n");
        }
        written
    }
}

/// A weight such as `0.5`, in thousandths. What is not one weighs nothing.
fn thousandths(text: &str) -> u32 {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let digits = rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit());
    match whole {
        "0" if digits => format!("{rest:0<3}").parse().unwrap_or_default(),
        "1" if rest.bytes().all(|byte| byte == b'0') => 1000,
        _ => 0,
    }
}

/// What is written of one name.
#[derive(Default)]
struct Family<'t> {
    /// Name and text.
    help: (&'t str, &'t str),
    kind: &'t str,
    series: Vec<&'t str>,
}

impl<'t> Family<'t> {
    fn finish(&mut self, form: Form, written: &mut String) {
        let Self { help: (name, help), kind, mut series } = std::mem::take(self);
        if name.is_empty() {
            return;
        }
        let (ending, kind) = match (form, kind) {
            (Form::OpenMetrics, kind) => ("", kind),
            (Form::Prometheus, "counter") => ("_total", "counter"),
            (Form::Prometheus, "info") => ("_info", "gauge"),
            (Form::Prometheus, "unknown") => ("", "untyped"),
            (Form::Prometheus, kind) => ("", kind),
        };
        written.push_str(&format!("# HELP {name}{ending} {help}\n# TYPE {name}{ending} {kind}\n"));
        // The parts of a histogram stay together and in their order.
        series.sort_by(|a, b| labels(a).cmp(labels(b)));
        for line in series {
            written.push_str(line);
            written.push('\n');
        }
    }
}

/// The labels of a series without the bound of a bucket.
fn labels(series: &str) -> &str {
    let (_, labels) = series.split_once('{').unwrap_or((series, ""));
    let (labels, _) = labels.rsplit_once('}').unwrap_or((labels, ""));
    match labels.strip_prefix("le=\"") {
        Some(rest) => rest.split_once("\",").map_or("", |(_, labels)| labels),
        None => labels,
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn asked(accept: &[&str]) -> Form {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, HeaderValue::from_str(value).unwrap());
        }
        Form::asked(&headers)
    }

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
            text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for accept in [
            &[PROMETHEUS][..],
            &["application/openmetrics-text"],
            &["Application/OpenMetrics-Text; Version=\"1.0.0\""],
            &["application/openmetrics-text, text/plain"],
            &["text/plain;q=0.5", "application/openmetrics-text"],
            &["*/*, text/plain;q=0.2, application/openmetrics-text;q=0.3"],
        ] {
            assert_eq!(asked(accept), Form::OpenMetrics, "{accept:?}");
        }
        for accept in [
            &[][..],
            &["*/*"],
            &["text/plain;version=0.0.4"],
            &["text/plain"],
            &["application/*"],
            &["text/html"],
            &["application/openmetrics-text;q=0"],
            &["application/openmetrics-text;q=0.2, text/plain;q=0.3"],
            &["application/openmetrics-text;q=0.2, */*"],
            &["application/openmetrics-text;version=2.0.0"],
            &["application/openmetrics-text;q=nonsense, */*;q=0.1"],
            &["application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"],
            &[";;,,=;q=,\t"],
        ] {
            assert_eq!(asked(accept), Form::Prometheus, "{accept:?}");
        }
    }

    const REGISTRY: &str = "\
# HELP a Counts.
# TYPE a counter
a_total{w=\"z\",o=\"1\"} 1
a_total{w=\"b\",o=\"2\"} 2
# HELP h Takes.
# TYPE h histogram
h_sum{w=\"z\"} 1.0
h_count{w=\"z\"} 1
h_bucket{le=\"0.5\",w=\"z\"} 1
h_bucket{le=\"+Inf\",w=\"z\"} 1
h_sum{w=\"b\"} 0.0
h_bucket{le=\"10.0\",w=\"b\"} 0
# HELP build Is.
# TYPE build info
build_info{version=\"1 {}\"} 1
# EOF
";

    #[test]
    fn series_have_a_fixed_order_and_the_form_that_was_asked_for() {
        let text = Form::Prometheus.write(REGISTRY);
        assert_eq!(
            text,
            "\
# HELP a_total Counts.
# TYPE a_total counter
a_total{w=\"b\",o=\"2\"} 2
a_total{w=\"z\",o=\"1\"} 1
# HELP h Takes.
# TYPE h histogram
h_sum{w=\"b\"} 0.0
h_bucket{le=\"10.0\",w=\"b\"} 0
h_sum{w=\"z\"} 1.0
h_count{w=\"z\"} 1
h_bucket{le=\"0.5\",w=\"z\"} 1
h_bucket{le=\"+Inf\",w=\"z\"} 1
# HELP build_info Is.
# TYPE build_info gauge
build_info{version=\"1 {}\"} 1
"
        );
        let open = Form::OpenMetrics.write(REGISTRY);
        assert!(
            open.ends_with("# EOF\n")
                && open.contains("# TYPE a counter\n")
                && open.contains("# TYPE build info\n")
        );
        assert_eq!(open.lines().count(), REGISTRY.lines().count());
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_is_answered(accept in "[ -~]{0,80}") {
            asked(&[&accept]);
        }
    }
}
