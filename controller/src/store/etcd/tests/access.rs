//! Who is let in: users, certificates, and things that are no etcd.

use std::{fs, path::Path, process::Command};

use etcd_client::{Permission, PermissionType};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use super::*;

const PREFIX: &str = "/yuxi/ours/";

/// An etcd that knows the users `root` and `yuxi`, of whom the latter may use [`PREFIX`].
async fn etcd_with_users(arguments: &[&str]) -> Etcd {
    let etcd = Etcd::start(arguments);
    let client = Client::connect([etcd.url()], None).await.unwrap();
    let mut users = client.auth_client();
    users.user_add("root", "root", None).await.unwrap();
    users.user_grant_role("root", "root").await.unwrap();
    users.user_add("yuxi", "jade", None).await.unwrap();
    users.role_add("brokers").await.unwrap();
    let ours = Permission::new(PermissionType::Readwrite, PREFIX).with_prefix();
    users.role_grant_permission("brokers", ours).await.unwrap();
    users.user_grant_role("yuxi", "brokers").await.unwrap();
    users.auth_enable().await.unwrap();
    etcd
}

fn as_user(etcd: &Etcd, user: &str, password: &str, prefix: &str) -> EtcdOptions {
    EtcdOptions {
        user: Some((user.to_owned(), password.to_owned())),
        prefix: prefix.to_owned(),
        ..options(&etcd.url())
    }
}

fn assert_denied(error: &StoreError, word: &str) {
    let StoreError::Denied(why) = error else {
        panic!("expected it to be denied, got {error:?}");
    };
    assert!(why.contains(word), "{why}");
}

#[tokio::test]
async fn a_user_is_let_in_with_the_password_and_to_the_prefix() {
    let etcd = etcd_with_users(&[]).await;
    let ours = |user, password| as_user(&etcd, user, password, PREFIX);
    assert_denied(&refusal(ours("yuxi", "wrong")).await, "etcd.password");
    assert_denied(&refusal(ours("nobody", "jade")).await, "etcd.user=nobody");
    assert_denied(&refusal(options(&etcd.url())).await, "set etcd.user");
    let theirs = as_user(&etcd, "yuxi", "jade", "/yuxi/theirs/");
    assert_denied(&refusal(theirs).await, "etcd.prefix=/yuxi/theirs/");

    let store = EtcdStore::connect(ours("yuxi", "jade")).await.unwrap();
    let session = store.open_session(DEADLINE).await.unwrap();
    let start = store.read("").await.unwrap().revision;
    let mut watch = store.watch("", start).await.unwrap();
    let mut transaction = put("k", "1");
    transaction.guards.push(Guard::Absent("k".to_owned()));
    let at = apply(&store, transaction).await;
    assert_eq!(next_batch(&mut watch).await.revision, at);
    store.keep_session(session).await.unwrap();
    store.close_session(session).await.unwrap();
}

#[tokio::test]
async fn a_user_is_refused_where_none_are_known() {
    let etcd = process::shared();
    let error = refusal(as_user(etcd, "yuxi", "jade", PREFIX)).await;
    assert_denied(&error, "remove etcd.user");
}

#[tokio::test]
async fn a_permission_that_is_taken_away_ends_commits_and_watches() {
    let mut etcd = etcd_with_users(&[]).await;
    let store = EtcdStore::connect(as_user(&etcd, "yuxi", "jade", PREFIX));
    let store = store.await.unwrap();
    let start = store.read("").await.unwrap().revision;
    let mut watch = store.watch("", start).await.unwrap();
    let as_root = etcd_client::ConnectOptions::new().with_user("root", "root");
    let root = Client::connect([etcd.url()], Some(as_root)).await.unwrap();
    root.auth_client()
        .user_revoke_role("yuxi", "brokers")
        .await
        .unwrap();
    let refused = store.commit(put("k", "1")).await.unwrap_err();
    assert_denied(&refused, PREFIX);
    // etcd looks at the permission of a watch when it is opened.
    etcd.restart();
    let ended = timeout(DEADLINE, watch.next()).await.expect("in time");
    assert_denied(&ended.expect("an error").unwrap_err(), PREFIX);
}

#[tokio::test]
async fn a_token_that_has_expired_is_renewed() {
    let mut etcd = etcd_with_users(&["--auth-token-ttl=1"]).await;
    let store = EtcdStore::connect(as_user(&etcd, "yuxi", "jade", PREFIX));
    let store = store.await.unwrap();
    let start = apply(&store, put("k", "1")).await;
    let mut watch = store.watch("", start).await.unwrap();
    // There is nothing to wait for but the time.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let second = apply(&store, put("k", "2")).await;
    assert_eq!(next_batch(&mut watch).await.revision, second);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut late = store.watch("", second).await.unwrap();
    let third = apply(&store, put("k", "3")).await;
    assert_eq!(next_batch(&mut late).await.revision, third);
    // An etcd that was restarted knows no token at all.
    etcd.restart();
    let fourth = insist(&store, "k", "4").await;
    assert_eq!(next_batch(&mut watch).await.revision, third);
    assert_eq!(next_batch(&mut watch).await.revision, fourth);
    assert_eq!(next_batch(&mut late).await.revision, fourth);
}

/// An authority, a certificate of etcd's and one of a client's.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let certificates = Self(tempfile::tempdir().unwrap());
        certificates.openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem");
        for (name, more) in [
            (
                "server",
                "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth",
            ),
            (
                "client",
                "subjectAltName=DNS:client\nextendedKeyUsage=clientAuth",
            ),
        ] {
            fs::write(certificates.path("extensions"), more).unwrap();
            certificates.openssl(&format!(
                "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ));
            certificates.openssl(&format!("x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"));
        }
        certificates
    }

    fn openssl(&self, arguments: &str) {
        let run = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.0.path())
            .output()
            .expect("these tests need openssl on PATH (Debian: apt-get install openssl)");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "openssl {arguments}: {said}");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn tls(&self, with_identity: bool) -> EtcdTls {
        EtcdTls {
            ca: self.path("ca.pem"),
            identity: with_identity.then(|| (self.path("client.pem"), self.path("client.key"))),
        }
    }

    fn etcd(&self) -> Etcd {
        let file = |option: &str, name: &str| format!("--{option}={}", self.path(name).display());
        let arguments = [
            file("cert-file", "server.pem"),
            file("key-file", "server.key"),
            file("trusted-ca-file", "ca.pem"),
            "--client-cert-auth".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Etcd::start_with_tls(&arguments)
    }
}

fn over_tls(etcd: &Etcd, tls: EtcdTls) -> EtcdOptions {
    EtcdOptions {
        tls: Some(tls),
        ..options(&etcd.url())
    }
}

#[tokio::test]
async fn both_sides_of_a_connection_over_tls_show_who_they_are() {
    let certificates = Certificates::new();
    let etcd = certificates.etcd();
    let store = EtcdStore::connect(over_tls(&etcd, certificates.tls(true)));
    apply(&store.await.unwrap(), put("k", "1")).await;

    let without = refusal(over_tls(&etcd, certificates.tls(false))).await;
    assert!(
        without.to_string().contains("etcd.tls.certificate"),
        "{without}"
    );
    let stranger = EtcdTls {
        ca: Certificates::new().path("ca.pem"),
        identity: None,
    };
    // The directory of those is gone by now.
    assert_denied(&refusal(over_tls(&etcd, stranger)).await, "etcd.tls.ca=");
    let others = Certificates::new();
    let untrusted = refusal(over_tls(&etcd, others.tls(false))).await;
    assert_denied(&untrusted, "etcd.tls.ca");

    let plain = options(&etcd.url().replace("https", "http"));
    let plain = refusal(plain).await;
    assert!(plain.to_string().contains("etcd.endpoints"), "{plain}");
    let mut encrypted = over_tls(&etcd, certificates.tls(true));
    encrypted.endpoints = vec![process::shared().url().replace("http", "https")];
    let encrypted = refusal(encrypted).await;
    assert!(encrypted.to_string().contains("http://"), "{encrypted}");
}

#[tokio::test]
async fn a_file_that_is_no_certificate_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    let tls = |ca: &Path| EtcdTls {
        ca: ca.to_owned(),
        identity: None,
    };
    let etcd = process::shared();
    let error = refusal(over_tls(etcd, tls(&file))).await;
    assert_denied(&error, "etcd.tls.ca=");
    fs::write(&file, "hello").unwrap();
    let error = refusal(over_tls(etcd, tls(&file))).await;
    assert_denied(&error, "ca.pem: it is not a PEM file");
}

#[tokio::test]
async fn what_is_no_etcd_is_said_to_be_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                .await;
        }
    });
    let error = refusal(options(&url)).await.to_string();
    assert!(error.contains(&url) && error.contains("etcd"), "{error}");
    serving.abort();
}
