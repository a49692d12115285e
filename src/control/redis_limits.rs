//! Keeping a connection to the Redis that holds the buckets of all instances, and asking it.
//!
//! All requests share one connection: what they ask while an answer is on its way goes out together. The buckets follow Redis's own
//! clock, so that the clocks of the instances do not matter, and each changes in one step there.

use std::{sync::Arc, time::Duration};

use redis::{AsyncConnectionConfig, ErrorKind, RedisError, Value, aio::MultiplexedConnection};
use tokio::{sync::watch as channel, task::JoinSet};

use crate::{
    clock,
    policy::snapshot::RedisSpec,
    state::{
        State,
        rate_limit::{Granted, Limited},
        remote_limits::{Answer, Ask, RateLimitEngine, RemoteLimits, Verdicts},
    },
    telemetry::event::Event,
};

/// How long connecting, and a sign of life, may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a sign of life is asked for.
const BEAT: Duration = Duration::from_secs(1);
/// How long a failed connection waits before the next, at first; it doubles.
const RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// The line of the readiness report.
const REPORT: &str = "global-rate-limit";

/// GCRA: a bucket is the time at which it will be full again, in microseconds. Numbers are written out by hand, because Lua would round
/// large ones when it makes text of them.
const SCRIPT: &str = r"
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local interval, burst, tokens, patience = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local new = full + tokens * interval
if patience < 0 then
  new = math.max(full, math.min(new, now + 2 * burst))
end
local wait = new - now - burst
if patience >= 0 and wait > patience then
  return {0, math.ceil(wait), 0}
end
local life = math.ceil((new - now) / 1000)
if life > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', new), 'PX', life)
end
return {1, math.max(0, math.ceil(wait)), math.max(0, math.floor(-wait / interval))}
";

/// Keeps a connection for the policies in force, if they want one.
pub(super) async fn keep(state: Arc<State>, mut generations: channel::Receiver<u64>) {
    let mut tasks = JoinSet::new();
    let mut current: Option<Arc<RemoteLimits>> = None;
    loop {
        let wanted = state.live.load().remote_limits.clone();
        if wanted.as_ref().map(Arc::as_ptr) != current.as_ref().map(Arc::as_ptr) {
            tasks.abort_all();
            match &wanted {
                Some(limits) => _ = tasks.spawn(stay_connected(state.clone(), limits.clone())),
                None => state.lifecycle.retract(REPORT),
            }
            current = wanted;
        }
        if !super::changed(&mut generations, &mut tasks).await {
            return;
        }
    }
}

async fn stay_connected(state: Arc<State>, limits: Arc<RemoteLimits>) {
    let (mut wait, mut told) = (RETRY, None);
    loop {
        let why = match connect(limits.spec()).await {
            Err(why) => why,
            Ok((connection, script)) => {
                limits.connected(Box::new(Engine { connection: connection.clone(), script, limits: Arc::downgrade(&limits) }));
                state.lifecycle.report(REPORT, Ok(format!("redis at {} keeps the limits of all instances", limits.spec().address)));
                if told.take().is_some() {
                    state.telemetry.emit(Event::GlobalLimitsRestored { engine: limits.spec().address.clone() });
                }
                wait = RETRY;
                until_lost(connection, &limits).await
            }
        };
        limits.disconnected();
        let why = format!("redis at {} ({}): {why}", limits.spec().address, limits.spec().place);
        state.lifecycle.report(REPORT, Err(why.clone()));
        if told.as_ref() != Some(&why) {
            state.telemetry.emit(Event::GlobalLimitsLost { why: why.clone() });
            told = Some(why);
        }
        clock::sleep(wait.mul_f64(fastrand::f64().mul_add(0.5, 0.75))).await;
        wait = (wait * 2).min(LONGEST_RETRY);
    }
}

async fn connect(spec: &RedisSpec) -> Result<(MultiplexedConnection, Arc<str>), String> {
    let client = redis::Client::open(spec.url.as_str()).map_err(|error| explain(&error))?;
    // A request bounds its own wait; this bounds what waits for nobody.
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
    let connecting = async {
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let script: String = redis::cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query_async(&mut connection).await?;
        Ok((connection, script.into()))
    };
    let connected = clock::within(Some(PATIENCE * 2), connecting).await;
    connected.unwrap_or_else(|_| Err((ErrorKind::Io, "it does not answer").into())).map_err(|error: RedisError| explain(&error))
}

/// Returns why a connection is of no use any more.
async fn until_lost(mut connection: MultiplexedConnection, limits: &RemoteLimits) -> String {
    loop {
        tokio::select! {
            () = clock::sleep(BEAT) => {}
            () = limits.broken() => {}
        }
        // A sign of life that is of use: a Redis that was emptied has forgotten the script.
        let alive = async { redis::cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query_async::<Value>(&mut connection).await };
        match clock::within(Some(PATIENCE), alive).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return explain(&error),
            Err(_) => return "it does not answer".to_owned(),
        }
    }
}

/// What went wrong, and the mend where it is known.
fn explain(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::AuthenticationFailed => format!("it refuses the name or the password, mend `url`: {error}"),
        ErrorKind::InvalidClientConfig => format!("it cannot be reached so, mend `url`: {error}"),
        _ => error.to_string(),
    }
}

#[derive(Debug)]
struct Engine {
    connection: MultiplexedConnection,
    /// The script's hash.
    script: Arc<str>,
    limits: std::sync::Weak<RemoteLimits>,
}

impl RateLimitEngine for Engine {
    fn ask(&self, asks: Vec<Ask>) -> Answer {
        let (mut connection, script, limits) = (self.connection.clone(), self.script.clone(), self.limits.clone());
        Box::pin(async move {
            let mut pipeline = redis::pipe();
            for ask in &asks {
                let micros = |time: Duration| time.as_secs_f64() * 1e6;
                let patience = ask.max_wait.map_or(-1.0, micros);
                pipeline.cmd("EVALSHA").arg(&*script).arg(1).arg(&ask.key).arg(micros(ask.interval)).arg(micros(ask.burst_time)).arg(ask.tokens).arg(patience);
            }
            let answer: Result<Vec<(u8, u64, u32)>, _> = pipeline.query_async(&mut connection).await;
            // Whoever keeps the connection looks after it at once.
            let answer = answer.inspect_err(|_| {
                if let Some(limits) = limits.upgrade() {
                    limits.report_broken();
                }
            });
            answer.map(|answers| answers.into_iter().map(verdict).collect::<Verdicts>()).map_err(|error| error.to_string())
        })
    }
}

fn verdict((is_granted, wait, left): (u8, u64, u32)) -> Result<Granted, Limited> {
    let wait = Duration::from_micros(wait);
    if is_granted == 1 { Ok(Granted { wait, left }) } else { Err(Limited { retry_after: wait }) }
}
