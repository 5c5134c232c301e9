//! `mrm top`.

use crate::failure::Failure;
use crate::http::Api;
use crate::look::{Look, Tone};
use crate::out::Out;
use crate::table::{Align, Table};
use crate::terminal::{Screen, Wish, Wishes};
use crate::units;
use crate::wire::{Counters, Model, Session, Sessions, Status};
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;

const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Rows for a picture that is printed once.
const ROWS_UNBOUNDED: usize = usize::MAX;
/// Of the rows under the head, sessions get at least one in this many.
const SESSIONS_SHARE: usize = 3;

/// What one refresh shows.
#[derive(Debug)]
struct Picture {
    status: Status,
    models: Vec<Model>,
    sessions: Vec<Session>,
    taken: Instant,
}

/// Shows the live view, or prints it once.
pub(super) async fn run(api: &Api, once: bool, out: Out) -> Result<(), Failure> {
    if out.json {
        return out.document(&documents(api).await?);
    }
    if once || !out.look.terminal {
        let picture = picture(api).await?;
        return out.text(&render(&picture, None, out.look, ROWS_UNBOUNDED));
    }
    // The first answer is awaited before the screen is taken: without a daemon, fail as usual.
    let first = picture(api).await?;
    live(api, first, out).await
}

async fn live(api: &Api, first: Picture, out: Out) -> Result<(), Failure> {
    let mut wishes = Wishes::listen()?;
    let screen = Screen::enter()?;
    let mut tick = tokio::time::interval(REFRESH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.reset();
    let mut shown = Ok(first);
    let mut before: Option<(Instant, Counters)> = None;
    loop {
        let look = now(out.look);
        let rows = look.size.map_or(ROWS_UNBOUNDED, |(_, rows)| rows);
        let text = match &shown {
            Ok(picture) => render(picture, before.as_ref(), look, rows),
            Err(failure) => absent(failure, look),
        };
        screen.draw(&text, rows)?;
        let wish = tokio::select! {
            wish = wishes.next() => wish,
            _ = tick.tick() => {
                let was = shown.as_ref().ok().map(moment);
                tokio::select! {
                    wish = wishes.next() => wish,
                    next = picture(api) => {
                        before = was;
                        shown = next;
                        Wish::Redraw
                    }
                }
            }
        };
        match wish {
            Wish::Quit => return Ok(()),
            Wish::Redraw => {}
        }
    }
}

fn moment(picture: &Picture) -> (Instant, Counters) {
    (picture.taken, picture.status.counters.clone())
}

/// The look with the window's present size.
fn now(look: Look) -> Look {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let size = size.filter(|size| size.ws_col > 0);
    let size = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row.max(1))));
    Look {
        size: size.or(look.size),
        ..look
    }
}

async fn documents(api: &Api) -> Result<Value, Failure> {
    let status = api.get("/v1/status").await?;
    let mut models = api.models("").await?;
    let mut sessions = api.get("/v1/sessions").await?;
    Ok(json!({
        "status": status,
        "models": models["models"].take(),
        "sessions": sessions["sessions"].take(),
    }))
}

async fn picture(api: &Api) -> Result<Picture, Failure> {
    let mut documents = documents(api).await?;
    let models: Vec<Model> = api.read(&documents["models"].take())?;
    let sessions: Sessions = api.read(&json!({"sessions": documents["sessions"].take()}))?;
    let status = api.read(&documents["status"].take())?;
    Ok(Picture {
        status,
        models,
        sessions: sessions.sessions,
        taken: Instant::now(),
    })
}

fn absent(failure: &Failure, look: Look) -> String {
    let message = crate::look::safe(&failure.to_string());
    format!(
        "{}\n\ntrying again each second; `q` quits\n",
        look.paint(Tone::Bad, &message)
    )
}

fn render(
    picture: &Picture,
    before: Option<&(Instant, Counters)>,
    look: Look,
    rows: usize,
) -> String {
    let status = &picture.status;
    let mut text = String::new();
    let _ = writeln!(text, "{}", super::status::daemon(&status.daemon, look));
    let _ = writeln!(text, "{}", super::status::memory(&status.host, look));
    for device in &status.devices.devices {
        let _ = writeln!(text, "{}", super::status::device(device, look));
    }
    let _ = writeln!(
        text,
        "{}{}",
        super::status::clients(status),
        rates(picture, before)
    );
    if !status.degraded.is_empty() {
        let degraded = units::count(status.degraded.len() as u64, "degraded path");
        let line = format!("{degraded}: see `mrm status`");
        let _ = writeln!(text, "{}", look.paint(Tone::Warning, &line));
    }
    // The two heads and the two blank lines.
    let room = rows.saturating_sub(text.lines().count() + 4);
    let sessions_min = picture.sessions.len().min(room / SESSIONS_SHARE);
    let (models, more) = models(&picture.models, room - sessions_min, look);
    let used = models.lines().count().saturating_sub(1);
    let _ = write!(text, "\n{models}{more}");
    let left = room.saturating_sub(used + usize::from(!more.is_empty()));
    let _ = write!(text, "\n{}", sessions(&picture.sessions, left, look));
    text
}

/// Opens per second since the picture before.
fn rates(picture: &Picture, before: Option<&(Instant, Counters)>) -> String {
    let Some((since, counters)) = before else {
        return String::new();
    };
    let opens = picture
        .status
        .counters
        .opens_total
        .saturating_sub(counters.opens_total);
    let seconds = picture
        .taken
        .duration_since(*since)
        .as_secs_f64()
        .max(f64::EPSILON);
    #[expect(clippy::cast_precision_loss, reason = "shown without decimals")]
    let rate = opens as f64 / seconds;
    format!(", {rate:.0} opens/s")
}

/// Models in memory: first what loads, then what is held most, then what was used last.
fn models(models: &[Model], rows: usize, look: Look) -> (String, String) {
    let mut present: Vec<&Model> = models
        .iter()
        .filter(|model| model.state != "absent")
        .collect();
    present.sort_by(|a, b| {
        let rank = |model: &Model| (model.state != "loading", Reverse(model.leases));
        let age = |model: &Model| model.last_used_s_ago.unwrap_or(f64::INFINITY);
        rank(a)
            .cmp(&rank(b))
            .then(age(a).total_cmp(&age(b)))
            .then_with(|| a.name.cmp(&b.name))
    });
    let rows = if present.len() > rows {
        rows.saturating_sub(1)
    } else {
        rows
    };
    let more = present.len().saturating_sub(rows);
    let shown: Vec<Model> = present.into_iter().take(rows).cloned().collect();
    let more = if more > 0 {
        format!("and {more} more\n")
    } else {
        String::new()
    };
    (super::ls::table(&shown, look), more)
}

fn sessions(sessions: &[Session], rows: usize, look: Look) -> String {
    let mut sessions: Vec<&Session> = sessions.iter().collect();
    sessions.sort_by_key(|session| (Reverse(session.leases), session.id));
    let mut table = Table::new(&[
        ("CLIENT", Align::Shrink),
        ("PID", Align::Right),
        ("UID", Align::Right),
        ("LEASES", Align::Right),
        ("WAITING", Align::Right),
        ("CONNECTED", Align::Right),
    ]);
    for session in sessions.into_iter().take(rows) {
        table.row([
            super::show::client_name(&session.client),
            super::show::pid(session.pid),
            session.uid.to_string().into(),
            session.leases.to_string().into(),
            session.waiting.to_string().into(),
            units::seconds(session.connected_s).into(),
        ]);
    }
    table.render(look)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, state: &str, leases: u64, used_s_ago: f64) -> Model {
        Model {
            name: name.into(),
            state: state.into(),
            leases,
            last_used_s_ago: Some(used_s_ago),
            ..Model::default()
        }
    }

    fn sample() -> Picture {
        Picture {
            status: Status::default(),
            models: vec![
                model("idle-old", "resident", 0, 90.0),
                model("idle-new", "resident", 0, 2.0),
                model("held", "resident", 3, 50.0),
                model("coming", "loading", 1, 0.0),
                model("away", "absent", 0, 0.0),
            ],
            sessions: vec![
                Session {
                    id: 1,
                    client: "a".into(),
                    ..Session::default()
                },
                Session {
                    id: 2,
                    client: "b".into(),
                    leases: 2,
                    ..Session::default()
                },
            ],
            taken: Instant::now(),
        }
    }

    #[test]
    fn models_are_sorted_by_what_matters() {
        let (table, more) = models(&sample().models, 10, Look::PLAIN);
        let names: Vec<&str> = table
            .lines()
            .skip(1)
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(names, ["coming", "held", "idle-new", "idle-old"]);
        assert!(more.is_empty());
    }

    #[test]
    fn a_picture_fits_its_window() {
        let whole = render(&sample(), None, Look::PLAIN, ROWS_UNBOUNDED);
        assert!(whole.contains("idle-old") && whole.contains("CLIENT"));
        for rows in 8..20 {
            let text = render(&sample(), None, Look::PLAIN, rows);
            assert!(text.lines().count() <= rows, "{rows} rows:\n{text}");
        }
        assert!(render(&sample(), None, Look::PLAIN, 11).contains("more"));
    }
}
