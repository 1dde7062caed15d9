//! Page tokens, which callers keep and send back. First octet: how much of the input is the query; then the rest is a token
//! that nobody made, and a place that a token is made for.
#![no_main]

use keyward::grpc::fuzzing::{page_place, page_token};
use keyward_fuzz::assert_is_for_the_sender;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| {
    let (at, text) = input;
    let (query, rest) = text.split_at(text.floor_char_boundary(usize::from(at)));

    match page_place(query, rest) {
        Ok(None) => assert!(rest.is_empty(), "the first page is asked for by no token alone"),
        // Accepted, so it is the one token for this place.
        Ok(Some(place)) => assert_eq!(page_token(query, &place), rest),
        Err(error) => assert_is_for_the_sender("ListTenants", error),
    }

    // A token leads to its place, and holds for its query alone. No field that goes into a query may hold a line end.
    let query = query.replace('\n', "");
    let token = page_token(&query, rest);
    assert_eq!(page_place(&query, &token).ok().flatten().as_deref(), Some(rest));
    assert!(page_place(&format!("{query}x"), &token).is_err());
});
