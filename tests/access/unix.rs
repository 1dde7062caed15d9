use serde_json::json;
use tonic::Code;

use crate::certificates::sign;
use crate::common::{Clients, Dial, Installation};
use crate::stand::record;

/// An installation that only processes of this user may call.
fn for_user(uid: u32) -> Installation {
    Installation::prepare()
        .set("grpc.auth", r#""required""#)
        .set("grpc.listen", r#""127.0.0.1:0""#)
        .set("grpc.unix_socket", r#""grpc.sock""#)
        .grant(&format!("unix:{uid}"), &["admin"])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_at_the_other_end_of_a_unix_socket_is_who_calls() {
    let own = rustix::process::geteuid().as_raw();
    for (uid, expected) in [(own, None), (own + 1, Some(Code::PermissionDenied))] {
        let installation = for_user(uid).without("grpc.listen");
        let server = installation.serve();
        let socket = installation.dir().join("grpc.sock");
        let mut clients = Clients::over(Dial::unix(&socket).connect().await.expect("a connection"));
        let code = sign(&mut clients, "nobody").await.expect_err("no tenant").code();
        assert_eq!(code, expected.unwrap_or(Code::NotFound), "unix:{uid}");
        let refused = record(&installation, "the call", |record| record["action"] == "sign");
        assert_eq!(refused["principals"], json!([format!("unix:{own}")]));
        drop(server);
    }
}
