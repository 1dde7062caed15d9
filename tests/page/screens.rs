//! Whether people can read it: both schemes, a phone, a screen reader, and its pictures in the documentation.

use std::path::PathBuf;
use std::{env, fs};

use keyward::grpc::proto::{RotationPolicy, Tenant};

use crate::browser::Browser;
use crate::common::Installation;
use crate::{CONTRAST_MIN, acme, create_acme, page_of, policy, secs};

/// WCAG 2.2, success criterion 2.5.8: the size of what is tapped, in CSS pixels.
const TARGET_MIN: f64 = 24.0;
/// Where the pictures go instead of a temporary directory, if it is set.
const SCREENSHOTS: &str = "KEYWARD_SCREENSHOTS";
/// A picture in the documentation is looked at over slow lines too.
const SCREENSHOT_BYTES_MAX: u64 = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_read_in_both_schemes_and_on_a_phone() {
    let (server, mut clients) = acme(Tenant::default()).await;
    clients.force_rotation("acme", "RS256").await;
    let mut browser = Browser::start();
    let mut backgrounds = Vec::new();
    for scheme in ["light", "dark"] {
        for width in [1120, 700, 360] {
            let seen = browser.look_as(&page_of(&server), scheme, width, None);
            let place = format!("{scheme}, {width} px");
            assert!(seen.contrast.ratio >= CONTRAST_MIN, "{place}: {:?}", seen.contrast);
            assert!(seen.scroll_width <= seen.inner_width, "{place}: {} px scroll sideways", seen.scroll_width);
            assert_eq!(seen.inner_width, width, "{place}: the page's own width is the screen's");
            for link in &seen.links {
                assert!(link.height >= TARGET_MIN && link.width >= TARGET_MIN, "{place}: {link:?}");
            }
            backgrounds.push(seen.background);
        }
    }
    assert!(backgrounds[..3].iter().all(|colour| *colour == backgrounds[0]), "{backgrounds:?}");
    assert!(backgrounds[3..].iter().all(|colour| *colour == backgrounds[3]), "{backgrounds:?}");
    assert_ne!(backgrounds[0], backgrounds[3], "light and dark are the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_one_file_in_plain_html_that_a_screen_reader_can_follow() {
    let (server, _clients) = acme(Tenant::default()).await;
    let url = page_of(&server);
    let seen = Browser::start().look(&url);
    assert_eq!(seen.requests, [url.as_str()], "the page asks for something besides itself");
    assert_eq!(seen.lang, "en");
    for element in ["script", "img", "iframe", "form", "object", "link", "svg"] {
        assert!(!seen.elements.iter().any(|name| name == element), "<{element}> is in the page");
    }
    for element in ["main", "header", "nav", "section", "footer", "h1", "ol", "dl", "time"] {
        assert!(seen.elements.iter().any(|name| name == element), "no <{element}>: {:?}", seen.elements);
    }
    assert_eq!(seen.headings[0], (1, "acme".to_owned()));
    assert_eq!(seen.headings.iter().filter(|(level, _)| *level == 1).count(), 1);
    for pair in seen.headings.windows(2) {
        assert!(pair[1].0 <= pair[0].0 + 1, "a level of headings is left out: {:?}", seen.headings);
    }
    assert!(!seen.selects.is_empty() && seen.selects.iter().all(|value| value == "all"), "{:?}", seen.selects);
    assert_eq!(seen.selected, Some(seen.keyring("RS256").keys[0].kid()), "one tap selects the whole kid");
}

/// The pictures of docs/page.md. `KEYWARD_SCREENSHOTS=docs/images cargo test --test page pictures` makes them anew.
#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_small_and_differ_by_scheme_and_width() {
    let scheduled = RotationPolicy { rotation_period: secs(30 * 86_400), ..policy() };
    // One keyring says it all, and keeps the pictures small.
    let wanted = Tenant {
        algorithms: vec!["RS256".into()],
        saml_sso_url: "https://sso.example.com/saml".into(),
        rotation_policy: Some(scheduled),
        ..Tenant::default()
    };
    let installation = Installation::prepare().set("public.base_url", r#""https://keys.example.com""#);
    let server = installation.serve();
    let mut clients = create_acme(&server, wanted).await;
    clients.force_rotation("acme", "RS256").await;
    let temporary = tempfile::tempdir().expect("a temporary directory");
    // Relative to the repository: tests run there.
    let folder = env::var_os(SCREENSHOTS).map_or(temporary.path().to_owned(), PathBuf::from);
    fs::create_dir_all(&folder).expect("the folder of the pictures");
    let mut browser = Browser::start();
    let mut pictures = Vec::new();
    for (name, scheme, width) in [("light", "light", 1120), ("dark", "dark", 1120), ("phone", "dark", 390)] {
        let file = folder.join(format!("page-{name}.png"));
        browser.look_as(&page_of(&server), scheme, width, Some(&file));
        let octets = fs::read(&file).expect("the picture was written");
        assert!(octets.starts_with(b"\x89PNG"), "{name} is no PNG");
        assert!(octets.len() as u64 <= SCREENSHOT_BYTES_MAX, "{name}: {} octets", octets.len());
        pictures.push(octets);
    }
    assert!(pictures[0] != pictures[1] && pictures[1] != pictures[2]);
}
