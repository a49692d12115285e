use crate::resilience::balance::hash_ring::*;

fn names(count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("10.0.{}.{}:8080", number / 256, number % 256))
        .collect()
}

fn ring(names: &[String]) -> HashRing {
    HashRing::new(
        &(0..)
            .zip(names)
            .map(|(number, name)| (number, name.clone(), 1.0))
            .collect::<Vec<_>>(),
    )
}

fn keys() -> impl Iterator<Item = u64> {
    (0..20_000_u32).map(|user| hash_key(format!("user-{user}").as_bytes()))
}

#[test]
fn keys_are_spread_by_weight() {
    let mut hits = [0_u32; 3];
    let ring = HashRing::new(&[
        (0, "a:1".to_owned(), 1.0),
        (1, "b:1".to_owned(), 1.0),
        (2, "c:1".to_owned(), 2.0),
    ]);
    keys().for_each(|key| hits[ring.pick(key, |_| true).expect("there are endpoints")] += 1);
    let [a, b, c] = hits;
    assert!(
        (3_800..=6_200).contains(&a)
            && (3_800..=6_200).contains(&b)
            && (8_500..=11_500).contains(&c),
        "{hits:?}"
    );
}

#[test]
fn removing_an_endpoint_moves_only_its_own_keys() {
    let all = names(10);
    let (before, after) = (ring(&all), ring(&all[..9]));
    for key in keys() {
        let owner = before.pick(key, |_| true);
        assert!(
            owner == Some(9) || after.pick(key, |_| true) == owner,
            "a key moved that need not"
        );
        assert_eq!(
            before.pick(key, |index| index != 9),
            after.pick(key, |_| true),
            "refused is as good as gone"
        );
    }
}

#[test]
fn the_order_of_endpoints_does_not_matter() {
    let all = names(5);
    let mut reversed = all.clone();
    reversed.reverse();
    let (one, other) = (ring(&all), ring(&reversed));
    assert!(
        keys().all(|key| one.pick(key, |_| true).map(|index| &all[index])
            == other.pick(key, |_| true).map(|index| &reversed[index]))
    );
}

#[test]
fn an_empty_ring_or_one_that_rejects_all_picks_none() {
    assert_eq!(HashRing::new(&[]).pick(7, |_| true), None);
    assert_eq!(ring(&names(3)).pick(7, |_| false), None);
}

#[test]
fn the_load_bound_is_the_weight_share_of_all_in_flight_rounded_up() {
    let table = [
        (0, 0, 0.25, true),
        (1, 1, 0.25, false),
        (4, 15, 0.25, true),
        (5, 15, 0.25, false),
        (9, 39, 0.25, true),
        (13, 39, 0.25, false),
    ];
    for (point_count, all, share, expected) in table {
        assert_eq!(
            is_within_load_bound(point_count, all, share, 1.25),
            expected,
            "{point_count} of {all}"
        );
    }
}

#[test]
fn a_hot_key_spills_over_to_further_endpoints() {
    let all = names(4);
    let ring = ring(&all);
    let mut load = [0_u32; 4];
    for sent in 0..100 {
        let picked = ring
            .pick(hash_key(b"hot"), |index| {
                is_within_load_bound(load[index], sent, 0.25, 1.25)
            })
            .expect("one is within its bound");
        load[picked] += 1;
    }
    assert!(load.iter().all(|load| *load <= 32), "{load:?}");
}
