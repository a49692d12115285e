use super::*;
use crate::resilience::some_instant;

const DAY: Duration = Duration::from_hours(24);

fn state(max_bytes: usize) -> StaleState {
    StaleState::new("app".into(), max_bytes)
}

fn answer(body: &'static str, vary: Option<&'static str>) -> Kept {
    let at = some_instant();
    let vary = vary.map(|language| {
        (
            http::header::ACCEPT_LANGUAGE,
            vec![HeaderValue::from_static(language)],
        )
    });
    Kept {
        headers: HeaderMap::new(),
        body: Bytes::from_static(body.as_bytes()),
        at,
        until: at + Duration::from_secs(60),
        age: Duration::ZERO,
        is_public: false,
        way: "in".into(),
        vary: vary.into_iter().collect(),
    }
}

fn asking(languages: &[&'static str]) -> HeaderMap {
    languages
        .iter()
        .map(|language| {
            (
                http::header::ACCEPT_LANGUAGE,
                HeaderValue::from_static(language),
            )
        })
        .collect()
}

#[test]
fn an_answer_is_given_to_whom_it_fits_until_its_time_is_over() {
    let (state, now) = (state(1 << 20), some_instant());
    state.keep("shop/a", answer("hello", Some("en")));
    state.keep("shop/a", answer("hallo", Some("de")));
    let body = |language, now| {
        state
            .find("shop/a", "in", &asking(&[language]), DAY, now)
            .map(|kept| kept.body.clone())
    };
    assert_eq!(body("en", now), Some(Bytes::from_static(b"hello")));
    assert_eq!(body("de", now), Some(Bytes::from_static(b"hallo")));
    assert_eq!(body("fr", now), None);
    assert_eq!(body("en", now + Duration::from_secs(62)), None);
    assert_eq!(
        state
            .find("shop/a", "other", &asking(&["en"]), DAY, now)
            .map(|_| ()),
        None,
        "another way"
    );
    assert_eq!(
        state
            .find(
                "shop/a",
                "in",
                &asking(&["en"]),
                Duration::ZERO,
                now + Duration::from_secs(1)
            )
            .map(|_| ()),
        None,
        "the policy has become stricter"
    );
    state.keep("shop/a", answer("howdy", Some("en")));
    assert_eq!(
        body("en", now),
        Some(Bytes::from_static(b"howdy")),
        "the new one replaces the old"
    );
    state.forget("shop/a");
    assert_eq!((body("de", now), state.size()), (None, (0, 0)));
}

#[test]
fn all_values_of_a_field_count_in_their_order() {
    let state = state(1 << 20);
    let both = Kept {
        vary: vec![(
            http::header::ACCEPT_LANGUAGE,
            vec![
                HeaderValue::from_static("en"),
                HeaderValue::from_static("user=7"),
            ],
        )],
        ..answer("mine", None)
    };
    state.keep("shop/a", both);
    let is_given = |languages: &[&'static str]| {
        state
            .find("shop/a", "in", &asking(languages), DAY, some_instant())
            .is_some()
    };
    assert!(is_given(&["en", "user=7"]));
    assert!(!is_given(&["en"]) && !is_given(&["en", "user=8"]) && !is_given(&["user=7", "en"]));
}

#[test]
fn the_last_answer_that_fits_is_given() {
    let state = state(1 << 20);
    state.keep("shop/a", answer("for all", None));
    state.keep("shop/a", answer("in english", Some("en")));
    let given = state
        .find("shop/a", "in", &asking(&["en"]), DAY, some_instant())
        .expect("both fit");
    assert_eq!(given.body, "in english");
}

#[test]
fn what_was_used_longest_ago_makes_room_and_the_bytes_are_bounded() {
    let each = size("shop/0", &[Arc::new(answer("hello", None))]);
    let state = state(each * 3);
    for page in ["shop/0", "shop/1", "shop/2"] {
        state.keep(page, answer("hello", None));
    }
    assert_eq!(state.size(), (3, each * 3), "exactly full");
    let is_kept = |page| {
        state
            .find(page, "in", &HeaderMap::new(), DAY, some_instant())
            .is_some()
    };
    assert!(is_kept("shop/0"), "and is now the one used last");
    state.keep("shop/3", answer("hello", None));
    assert_eq!(
        (
            is_kept("shop/0"),
            is_kept("shop/1"),
            is_kept("shop/2"),
            is_kept("shop/3")
        ),
        (true, false, true, true)
    );
    state.reconfigure(each - 1);
    assert_eq!(state.size(), (0, 0));
    state.keep("shop/4", answer("hello", None));
    assert_eq!(
        state.size(),
        (0, 0),
        "what is longer than all that may be kept is not"
    );
}

#[test]
fn variants_of_one_address_are_bounded() {
    let state = state(1 << 20);
    let languages = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    for language in languages {
        state.keep("shop/a", answer("x", Some(language)));
    }
    let kept: Vec<&str> = languages
        .into_iter()
        .filter(|language| {
            state
                .find("shop/a", "in", &asking(&[language]), DAY, some_instant())
                .is_some()
        })
        .collect();
    assert_eq!(kept, languages[1..]);
}

/// Whatever is kept, found and forgotten in whatever order: the count is the sum, below the bound, and of nothing it is nothing.
#[test]
fn the_bytes_are_those_of_what_is_kept() {
    let state = state(20_000);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..5_000 {
        let page = format!("shop/{}", random.u8(0..40));
        match random.u8(0..10) {
            0 => state.forget(&page),
            1 => state.reconfigure(random.usize(0..40_000)),
            2 => _ = state.find(&page, "in", &asking(&["a"]), DAY, some_instant()),
            _ => state.keep(
                &page,
                answer(
                    ["", "short", "a longer one"][random.usize(0..3)],
                    [None, Some("a"), Some("b")][random.usize(0..3)],
                ),
            ),
        }
        let inner = state.lock();
        let sum: usize = inner
            .answers
            .iter()
            .map(|(page, variants)| size(page, variants))
            .sum();
        assert!(
            inner.bytes == sum && sum <= inner.max_bytes,
            "{} of {}, really {sum}",
            inner.bytes,
            inner.max_bytes
        );
    }
    (0..40).for_each(|page| state.forget(&format!("shop/{page}")));
    assert_eq!(state.size(), (0, 0));
}

/// What came over the wire is a slice of a larger buffer.
#[test]
fn nothing_is_held_but_what_is_kept() {
    let wire = Bytes::from(vec![b'x'; 60_000]);
    let slice = HeaderValue::from_maybe_shared(wire.slice(0..4)).expect("visible");
    let kept = Kept {
        headers: HeaderMap::from_iter([(http::header::ETAG, slice.clone())]),
        body: wire.slice(4..8),
        vary: vec![(http::header::ACCEPT, vec![slice])],
        ..answer("", None)
    };
    let copy = kept.copied();
    assert!(wire.is_unique(), "the buffer is free once the original is");
    assert_eq!(
        (copy.headers[http::header::ETAG].as_bytes(), &copy.body[..]),
        (&b"xxxx"[..], &b"xxxx"[..])
    );
}
