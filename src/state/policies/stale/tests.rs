use crate::{resilience::some_instant, state::policies::stale::*};

const DAY: Duration = Duration::from_hours(24);

fn new_state(max_bytes: usize) -> StaleState {
    StaleState::new("app".into(), max_bytes)
}

fn cached_response(body: &'static str, vary: Option<&'static str>) -> CachedResponse {
    let at = some_instant();
    let vary = vary.map(|language| vary_field(&[language]));
    CachedResponse {
        headers: Headers::default(),
        body: Bytes::from_static(body.as_bytes()),
        received_at: at,
        expires_at: at + Duration::from_secs(60),
        initial_age: Duration::ZERO,
        is_public: false,
        forwarding_key: "in".into(),
        vary: vary.into_iter().collect(),
    }
}

fn vary_field(languages: &[&str]) -> VaryField {
    let values = languages.iter().map(|language| language.as_bytes().into());
    VaryField {
        name: "accept-language".into(),
        values: values.collect(),
    }
}

fn request_headers(languages: &[&str]) -> Headers {
    let mut headers = Headers::default();
    for language in languages {
        headers.append("Accept-Language", language);
    }
    headers
}

fn lookup<'r>(cache_key: &'r str, headers: &'r Headers) -> StaleLookup<'r> {
    StaleLookup {
        cache_key,
        forwarding_key: "in",
        headers,
    }
}

#[test]
fn a_response_is_found_for_matching_requests_until_it_expires() {
    let (state, now) = (new_state(1 << 20), some_instant());
    state.store("shop/a", cached_response("hello", Some("en")));
    state.store("shop/a", cached_response("hallo", Some("de")));
    let body = |language, now| {
        state
            .find(lookup("shop/a", &request_headers(&[language])), DAY, now)
            .map(|cached| cached.body.clone())
    };
    assert_eq!(body("en", now), Some(Bytes::from_static(b"hello")));
    assert_eq!(body("de", now), Some(Bytes::from_static(b"hallo")));
    assert_eq!(body("fr", now), None);
    assert_eq!(body("en", now + Duration::from_secs(62)), None);
    assert_eq!(
        state
            .find(
                StaleLookup {
                    forwarding_key: "other",
                    ..lookup("shop/a", &request_headers(&["en"]))
                },
                DAY,
                now
            )
            .map(|_| ()),
        None,
        "another way"
    );
    assert_eq!(
        state
            .find(
                lookup("shop/a", &request_headers(&["en"])),
                Duration::ZERO,
                now + Duration::from_secs(1)
            )
            .map(|_| ()),
        None,
        "the policy has become stricter"
    );
    state.store("shop/a", cached_response("howdy", Some("en")));
    assert_eq!(
        body("en", now),
        Some(Bytes::from_static(b"howdy")),
        "the new one replaces the old"
    );
    state.remove("shop/a");
    assert_eq!((body("de", now), state.size()), (None, (0, 0)));
}

#[test]
fn vary_matches_all_values_of_a_header_in_order() {
    let state = new_state(1 << 20);
    let response = CachedResponse {
        vary: vec![vary_field(&["en", "user=7"])],
        ..cached_response("mine", None)
    };
    state.store("shop/a", response);
    let is_found = |languages: &[&'static str]| {
        state
            .find(
                lookup("shop/a", &request_headers(languages)),
                DAY,
                some_instant(),
            )
            .is_some()
    };
    assert!(is_found(&["en", "user=7"]));
    assert!(!is_found(&["en"]) && !is_found(&["en", "user=8"]) && !is_found(&["user=7", "en"]));
}

#[test]
fn the_latest_matching_response_is_found() {
    let state = new_state(1 << 20);
    state.store("shop/a", cached_response("for all", None));
    state.store("shop/a", cached_response("in english", Some("en")));
    let found = state
        .find(
            lookup("shop/a", &request_headers(&["en"])),
            DAY,
            some_instant(),
        )
        .expect("both fit");
    assert_eq!(found.body, "in english");
}

#[test]
fn the_least_recently_used_entry_is_evicted_and_bytes_are_bounded() {
    let entry_bytes = variants_bytes("shop/0", &[Arc::new(cached_response("hello", None))]);
    let state = new_state(entry_bytes * 3);
    for cache_key in ["shop/0", "shop/1", "shop/2"] {
        state.store(cache_key, cached_response("hello", None));
    }
    assert_eq!(state.size(), (3, entry_bytes * 3), "exactly full");
    let is_cached = |cache_key| {
        state
            .find(lookup(cache_key, &Headers::default()), DAY, some_instant())
            .is_some()
    };
    assert!(is_cached("shop/0"), "and is now the one used last");
    state.store("shop/3", cached_response("hello", None));
    assert_eq!(
        (
            is_cached("shop/0"),
            is_cached("shop/1"),
            is_cached("shop/2"),
            is_cached("shop/3")
        ),
        (true, false, true, true)
    );
    state.reconfigure(entry_bytes - 1);
    assert_eq!(state.size(), (0, 0));
    state.store("shop/4", cached_response("hello", None));
    assert_eq!(
        state.size(),
        (0, 0),
        "what is longer than all that may be kept is not"
    );
}

#[test]
fn variants_per_cache_key_are_bounded() {
    let state = new_state(1 << 20);
    let languages = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    for language in languages {
        state.store("shop/a", cached_response("x", Some(language)));
    }
    let cached_languages: Vec<&str> = languages
        .into_iter()
        .filter(|language| {
            state
                .find(
                    lookup("shop/a", &request_headers(&[language])),
                    DAY,
                    some_instant(),
                )
                .is_some()
        })
        .collect();
    assert_eq!(cached_languages, languages[1..]);
}

/// After random operations the byte count is the sum of all entries and within the limit. It is
/// zero once all entries are removed.
#[test]
fn the_byte_count_is_the_sum_of_the_cached_entries() {
    let state = new_state(20_000);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..5_000 {
        let cache_key = format!("shop/{}", random.u8(0..40));
        match random.u8(0..10) {
            0 => state.remove(&cache_key),
            1 => state.reconfigure(random.usize(0..40_000)),
            2 => {
                _ = state.find(
                    lookup(&cache_key, &request_headers(&["a"])),
                    DAY,
                    some_instant(),
                )
            }
            _ => state.store(
                &cache_key,
                cached_response(
                    ["", "short", "a longer one"][random.usize(0..3)],
                    [None, Some("a"), Some("b")][random.usize(0..3)],
                ),
            ),
        }
        let inner = state.lock();
        let sum: usize = inner
            .responses
            .iter()
            .map(|(cache_key, variants)| variants_bytes(cache_key, variants))
            .sum();
        assert!(
            inner.bytes == sum && sum <= inner.max_bytes,
            "{} of {}, really {sum}",
            inner.bytes,
            inner.max_bytes
        );
    }
    (0..40).for_each(|cache_key| state.remove(&format!("shop/{cache_key}")));
    assert_eq!(state.size(), (0, 0));
}

/// Data from the wire is a slice of a larger buffer, which a cached copy must not retain.
#[test]
fn a_cached_response_does_not_retain_the_wire_buffer() {
    let wire = Bytes::from(vec![b'x'; 60_000]);
    let fields = [(&wire[..4], &wire[4..8])];
    let headers = Headers::locate(&wire, fields.into_iter()).expect("they are parts of it");
    let original = CachedResponse {
        headers: headers.with_buffer(wire.clone()),
        body: wire.slice(4..8),
        ..cached_response("", None)
    };
    let copy = original.into_compact();
    assert!(wire.is_unique(), "the buffer is free once the original is");
    assert_eq!(
        (copy.headers.get_str("xxxx"), &copy.body[..]),
        (Some("xxxx"), &b"xxxx"[..])
    );
}

#[test]
fn half_of_the_cache_is_evicted_with_the_longest_unused_responses_first() {
    let (state, now) = (new_state(1 << 20), some_instant());
    assert!(!state.evict_half(), "nothing to evict");
    for key in ["shop/a", "shop/b", "shop/c", "shop/d"] {
        state.store(key, cached_response("body", None));
    }
    let headers = request_headers(&[]);
    let is_cached = |key| state.find(lookup(key, &headers), DAY, now).is_some();
    assert!(is_cached("shop/a"), "it is now the latest used one");
    let bytes = state.size().1;
    assert!(state.evict_half());
    assert!(state.size().1 <= bytes / 2);
    let remaining: Vec<_> = ["shop/a", "shop/b", "shop/c", "shop/d"]
        .into_iter()
        .filter(|key| is_cached(key))
        .collect();
    assert_eq!(remaining, ["shop/a", "shop/d"]);
}
