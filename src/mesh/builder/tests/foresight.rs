//! What is read ahead decides nothing: whatever is foreseen, the state is the same.

use super::*;

#[test]
fn a_state_is_the_same_whatever_was_foreseen() {
    let push = |foreseen: &[&str]| {
        let mut builder = builder();
        builder.foresee(foreseen.iter().copied());
        builder.insert_service(web());
        for name in ["a", "b", "c"] {
            builder.foresee(foreseen.iter().copied());
            builder.insert_workload(behind(pod(name, "10.0.0.2"), "web", &[]));
        }
        builder.build();
        builder.foresee(foreseen.iter().copied());
        // Places that are remembered do not count any more, and wait to be looked at nevertheless.
        builder.insert_workload(server());
        builder.remove(&format!("shop/{}", host("web")));
        builder.foresee(foreseen.iter().copied());
        builder.remove("c1//Pod/shop/b");
        builder.insert_service(web());
        endpoints(&builder.build(), "web")
    };
    let expected = ["c1//Pod/shop/a", "c1//Pod/shop/c", SERVER];
    let many: Vec<String> = (0..100).map(|at| format!("c1//Pod/shop/{at}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let foreseen: [&[&str]; 4] = [
        &[],
        &["c1//Pod/shop/a", "c1//Pod/shop/a", "c1//Pod/shop/b", SERVER],
        &["", "nobody", "shop/web.shop.svc.cluster.local"],
        &many,
    ];
    for foreseen in foreseen {
        assert_eq!(push(foreseen), expected, "{foreseen:?}");
    }
}
