//! From a request line to what is wanted.

use super::fault::{Fault, HttpCode};
use super::params::{Params, decode};
use super::place::{Place, WarmOn};
use hyper::Method;
use mrm_core::policy::{Choice, UnknownPolicy};
use mrm_proto::error::ErrorCode;
use mrm_proto::limits::WAIT_MS_MAX;
use mrm_proto::name::ModelName;

/// Rows of a page that does not say.
pub(super) const LIMIT_DEFAULT: u64 = 256;
/// Most rows of a page; a larger `limit` is cut to it.
pub(super) const LIMIT_MAX: u64 = 1024;
/// Longest long poll; a larger `wait_ms` is cut to it.
pub(super) const EVENTS_WAIT_MS_MAX: u64 = 30_000;

/// Every path, for the answer to a wrong one.
const ROUTES: &str = "GET /v1/status, /v1/models, /v1/models/{name}, /v1/sessions, /v1/events, \
    /v1/policy, /v1/journal, /metrics, /healthz, /readyz; POST /v1/models/{name}/pin, /unpin, /warm, \
    /evict, /hint, /verify, /v1/verify, /v1/policy, /v1/drain";

const WARM_TIERS: &str = "`host`, `device`, `best` or a device's UUID";
const EVICT_TIERS: &str = "`host` or a device's UUID";

/// What is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Ready,
    Metrics,
    Status,
    Models {
        prefix: String,
        after: Option<String>,
        limit: usize,
    },
    Model {
        name: ModelName,
    },
    Sessions,
    Policies,
    Events {
        since: u64,
        limit: usize,
        wait_ms: u64,
    },
    /// A read that needs permission.
    Journal,
    Verb(Verb),
}

/// What needs permission.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Pin {
        name: ModelName,
        on: bool,
    },
    Warm {
        name: ModelName,
        on: WarmOn,
        wait_ms: Option<u64>,
    },
    Evict {
        name: ModelName,
        from: Option<Place>,
        wait_ms: Option<u64>,
    },
    Verify {
        name: Option<ModelName>,
        wait_ms: Option<u64>,
    },
    SetPolicy {
        on: Option<Place>,
        to: Option<Choice>,
    },
    Hint {
        name: ModelName,
        in_ms: u64,
    },
    Drain,
}

/// Reads the request line.
pub(super) fn route(method: &Method, path: &str, query: Option<&str>) -> Result<Route, Fault> {
    let query = query.unwrap_or_default();
    if let Some(rest) = path.strip_prefix("/v1/models/") {
        return match *method {
            Method::GET | Method::HEAD => model(rest, query),
            Method::POST => verb(rest, query).map(Route::Verb),
            _ => Err(not_allowed(method, path, "GET, HEAD, POST")),
        };
    }
    if path == "/v1/drain" || path == "/v1/verify" {
        return match *method {
            Method::POST if path == "/v1/drain" => {
                Params::parse(query, &[])?;
                Ok(Route::Verb(Verb::Drain))
            }
            Method::POST => {
                let wait_ms = wait_ms(&Params::parse(query, &["wait_ms"])?)?;
                let name = None;
                Ok(Route::Verb(Verb::Verify { name, wait_ms }))
            }
            _ => Err(not_allowed(method, path, "POST")),
        };
    }
    if path == "/v1/policy" && *method == Method::POST {
        return set_policy(query).map(Route::Verb);
    }
    let read: fn(&str) -> Result<Route, Fault> = match path {
        "/healthz" => |query| bare(query, Route::Health),
        "/readyz" => |query| bare(query, Route::Ready),
        "/metrics" => |query| bare(query, Route::Metrics),
        "/v1/status" => |query| bare(query, Route::Status),
        "/v1/sessions" => |query| bare(query, Route::Sessions),
        "/v1/policy" => |query| bare(query, Route::Policies),
        "/v1/journal" => |query| bare(query, Route::Journal),
        "/v1/models" => models,
        "/v1/events" => events,
        _ => {
            let message = format!("there is no `{}`; there are: {ROUTES}", shown(path));
            return Err(Fault::http(HttpCode::UnknownRoute, message));
        }
    };
    match *method {
        Method::GET | Method::HEAD => read(query),
        _ if path == "/v1/policy" => Err(not_allowed(method, path, "GET, HEAD, POST")),
        _ => Err(not_allowed(method, path, "GET, HEAD")),
    }
}

fn set_policy(query: &str) -> Result<Verb, Fault> {
    let mut params = Params::parse(query, &["tier", "policy"])?;
    let on = params.place("tier", EVICT_TIERS)?;
    let named = params.take("policy").unwrap_or_default();
    let to = match named.as_str() {
        "configured" => None,
        name => Some(name.parse::<Choice>().map_err(|error| {
            let message = format!("{}, or `configured`", shown_error(&error));
            Fault::http(HttpCode::BadParameter, message)
        })?),
    };
    Ok(Verb::SetPolicy { on, to })
}

/// What is wrong with the name of a policy, without all of a long one.
fn shown_error(error: &UnknownPolicy) -> String {
    UnknownPolicy(shown(&error.0).to_owned()).to_string()
}

fn bare(query: &str, route: Route) -> Result<Route, Fault> {
    Params::parse(query, &[]).map(|_| route)
}

fn models(query: &str) -> Result<Route, Fault> {
    let mut params = Params::parse(query, &["prefix", "after", "limit"])?;
    let limit = limit(&params)?;
    let prefix = params.take("prefix").unwrap_or_default();
    Ok(Route::Models {
        prefix,
        after: params.take("after"),
        limit,
    })
}

fn events(query: &str) -> Result<Route, Fault> {
    let params = Params::parse(query, &["since", "limit", "wait_ms"])?;
    Ok(Route::Events {
        since: params.number("since")?.unwrap_or(0),
        limit: limit(&params)?,
        wait_ms: params
            .number("wait_ms")?
            .unwrap_or(0)
            .min(EVENTS_WAIT_MS_MAX),
    })
}

fn limit(params: &Params) -> Result<usize, Fault> {
    match params.number("limit")?.unwrap_or(LIMIT_DEFAULT) {
        0 => Err(Fault::http(
            HttpCode::BadParameter,
            "`limit` must be at least 1",
        )),
        // At most `LIMIT_MAX`, which fits.
        rows => Ok(usize::try_from(rows.min(LIMIT_MAX)).unwrap_or(usize::MAX)),
    }
}

fn model(raw: &str, query: &str) -> Result<Route, Fault> {
    Params::parse(query, &[])?;
    Ok(Route::Model { name: name(raw)? })
}

/// The last component is the verb, what stands before it the name, slashes and all.
fn verb(rest: &str, query: &str) -> Result<Verb, Fault> {
    let (raw, word) = rest.rsplit_once('/').unwrap_or((rest, ""));
    let allowed: &[&str] = match word {
        "warm" | "evict" => &["tier", "wait_ms"],
        "verify" => &["wait_ms"],
        "hint" => &["in_ms"],
        "pin" | "unpin" => &[],
        _ => {
            let message = "POST to a model needs a verb: \
                /v1/models/{name}/pin, /unpin, /warm, /evict, /verify or /hint";
            return Err(Fault::http(HttpCode::MethodNotAllowed, message).allowing("GET, HEAD"));
        }
    };
    let params = Params::parse(query, allowed)?;
    let wait_ms = wait_ms(&params)?;
    let name = name(raw)?;
    Ok(match word {
        "warm" => Verb::Warm {
            name,
            on: params.place("tier", WARM_TIERS)?.unwrap_or_default(),
            wait_ms,
        },
        "hint" => Verb::Hint {
            name,
            in_ms: params.number("in_ms")?.unwrap_or(0).min(WAIT_MS_MAX),
        },
        "evict" => Verb::Evict {
            name,
            from: params.place("tier", EVICT_TIERS)?,
            wait_ms,
        },
        "verify" => Verb::Verify {
            name: Some(name),
            wait_ms,
        },
        other => Verb::Pin {
            name,
            on: other == "pin",
        },
    })
}

fn wait_ms(params: &Params) -> Result<Option<u64>, Fault> {
    let wait_ms = params.number("wait_ms")?;
    Ok(wait_ms.map(|ms| ms.min(WAIT_MS_MAX)))
}

fn name(raw: &str) -> Result<ModelName, Fault> {
    let bad = |why: String| {
        let message = format!("`{}` is not the name of a model: {why}", shown(raw));
        Fault::code(ErrorCode::BadName, message)
    };
    let text = decode(raw, false).map_err(|why| bad(why.to_string()))?;
    ModelName::new(text).map_err(|why| bad(why.to_string()))
}

fn not_allowed(method: &Method, path: &str, allow: &'static str) -> Fault {
    let message = format!(
        "{} is not for `{}`; use {allow}",
        shown(method.as_str()),
        shown(path)
    );
    Fault::http(HttpCode::MethodNotAllowed, message).allowing(allow)
}

/// What came from outside, cut so that an answer cannot be made large by a question. The parser
/// of requests lets no control characters through.
pub(super) fn shown(text: &str) -> &str {
    const SHOWN_BYTES_MAX: usize = 128;
    let end = (0..=SHOWN_BYTES_MAX.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(target: &str) -> Result<Route, String> {
        of(&Method::GET, target)
    }

    fn of(method: &Method, target: &str) -> Result<Route, String> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        route(method, path, query).map_err(|fault| fault.view.error.code)
    }

    fn named(text: &str) -> ModelName {
        ModelName::new(text).unwrap()
    }

    #[test]
    fn a_name_keeps_its_slashes_however_they_are_written() {
        for target in ["/v1/models/org/bert/pin", "/v1/models/org%2Fbert%2fpin"] {
            assert_eq!(
                get(target),
                Ok(Route::Model {
                    name: named("org/bert/pin")
                })
            );
        }
        let pin = of(&Method::POST, "/v1/models/org/b%20e/pin");
        assert_eq!(
            pin,
            Ok(Route::Verb(Verb::Pin {
                name: named("org/b e"),
                on: true
            }))
        );
        let unpin = of(&Method::POST, "/v1/models/pin/unpin");
        assert_eq!(
            unpin,
            Ok(Route::Verb(Verb::Pin {
                name: named("pin"),
                on: false
            }))
        );
    }

    #[test]
    fn hostile_names_are_bad_names() {
        let long = "x".repeat(2000);
        for raw in [
            "", "..", "a/../b", "%2e%2e", "a%00b", "a%0Ab", "a%", "a%2", "a%zz", "%ff", &long,
        ] {
            assert_eq!(
                get(&format!("/v1/models/{raw}")),
                Err("bad_name".into()),
                "{raw}"
            );
            let target = format!("/v1/models/{raw}/evict");
            assert_eq!(of(&Method::POST, &target), Err("bad_name".into()), "{raw}");
        }
    }

    #[test]
    fn pages_are_bounded() {
        let page = |limit| {
            Ok(Route::Models {
                prefix: String::new(),
                after: None,
                limit,
            })
        };
        assert_eq!(get("/v1/models"), page(256));
        assert_eq!(get("/v1/models?limit=1"), page(1));
        assert_eq!(get("/v1/models?limit=99999999"), page(1024));
        for bad in ["0", "-1", "", "1e3", "18446744073709551616", "+1"] {
            assert_eq!(
                get(&format!("/v1/models?limit={bad}")),
                Err("bad_parameter".into())
            );
        }
        let waits = Route::Events {
            since: 7,
            limit: 256,
            wait_ms: 30_000,
        };
        assert_eq!(get("/v1/events?since=7&wait_ms=600000"), Ok(waits));
    }

    #[test]
    fn verbs_take_a_wait_where_there_is_something_to_wait_for() {
        let warm = |wait_ms| {
            Ok(Route::Verb(Verb::Warm {
                name: named("m"),
                on: WarmOn::Host,
                wait_ms,
            }))
        };
        assert_eq!(of(&Method::POST, "/v1/models/m/warm"), warm(None));
        assert_eq!(
            of(&Method::POST, "/v1/models/m/warm?wait_ms=5"),
            warm(Some(5))
        );
        let forever = of(&Method::POST, "/v1/models/m/warm?wait_ms=99999999999");
        assert_eq!(forever, warm(Some(WAIT_MS_MAX)));
        for target in [
            "/v1/models/m/pin?wait_ms=5",
            "/v1/drain?wait_ms=5",
            "/v1/drain?x",
        ] {
            assert_eq!(
                of(&Method::POST, target),
                Err("bad_parameter".into()),
                "{target}"
            );
        }
    }

    #[test]
    fn warming_and_evicting_say_where() {
        const UUID: &str = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab";
        let warm = |on| {
            let (name, wait_ms) = (named("m"), None);
            Ok(Route::Verb(Verb::Warm { name, on, wait_ms }))
        };
        for (tier, on) in [
            ("host", WarmOn::Host),
            ("device", WarmOn::Device),
            ("best", WarmOn::Best),
            (UUID, WarmOn::Named(UUID.parse().unwrap())),
        ] {
            let target = format!("/v1/models/m/warm?tier={tier}");
            assert_eq!(of(&Method::POST, &target), warm(on), "{tier}");
        }
        let evict = |from| {
            let (name, wait_ms) = (named("m"), Some(7));
            Ok(Route::Verb(Verb::Evict {
                name,
                from,
                wait_ms,
            }))
        };
        for (tier, from) in [
            ("", None),
            ("&tier=host", Some(Place::Host)),
            (
                &format!("&tier={UUID}"),
                Some(Place::Device(UUID.parse().unwrap())),
            ),
        ] {
            let target = format!("/v1/models/m/evict?wait_ms=7{tier}");
            assert_eq!(of(&Method::POST, &target), evict(from), "{tier}");
        }
        for target in [
            "/v1/models/m/warm?tier=",
            "/v1/models/m/warm?tier=cuda:0",
            "/v1/models/m/warm?tier=MIG-5a3c",
            "/v1/models/m/evict?tier=best",
            "/v1/models/m/pin?tier=host",
        ] {
            let code = of(&Method::POST, target);
            assert_eq!(code, Err("bad_parameter".into()), "{target}");
        }
        let query = format!("tier={}", "é".repeat(5000));
        let fault = route(&Method::POST, "/v1/models/m/warm", Some(&query)).unwrap_err();
        let message = fault.view.error.message;
        assert!(
            message.len() < 600 && message.contains("`best`"),
            "{message}"
        );
    }

    #[test]
    fn wrong_paths_and_methods_say_what_there_is() {
        for target in [
            "/",
            "/v1",
            "/v1/status/",
            "/v2/status",
            "/v1/Models",
            "//v1/status",
        ] {
            let fault = route(&Method::GET, target, None).unwrap_err();
            assert_eq!(fault.status, 404, "{target}");
            assert!(fault.view.error.message.contains("/v1/models/{name}/pin"));
        }
        let cases = [
            (Method::POST, "/v1/status", "GET, HEAD"),
            (Method::DELETE, "/v1/models/x", "GET, HEAD, POST"),
            (Method::POST, "/v1/models/x", "GET, HEAD"),
            (Method::POST, "/v1/models/x/frob", "GET, HEAD"),
            (Method::GET, "/v1/drain", "POST"),
        ];
        for (method, path, allow) in cases {
            let fault = route(&method, path, None).unwrap_err();
            assert_eq!(
                (fault.status.as_u16(), fault.allow),
                (405, Some(allow)),
                "{path}"
            );
        }
    }

    #[test]
    fn a_long_path_is_not_echoed_whole() {
        let fault = route(&Method::GET, &"/é".repeat(5000), None).unwrap_err();
        assert!(fault.view.error.message.len() < 600);
    }
}
