//! The configuration is read again while the server runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use consort_core::{AdapterFiles, ErrorKind, Residency};
use consort_gguf::{GgufWriter, TensorType};
use consort_server::{AdapterLibrary, Config, Fresh, Keys, Listen, Server, Source};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::client::{Client, chat, etude, request};

const FOX: &str = "Tell me a story about a fox.";

/// A server over a folder with `consort.toml`, `keys`, and `adapters/`.
struct Site {
    root: tempfile::TempDir,
    client: Client,
}

impl Site {
    async fn new(text: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("adapters")).unwrap();
        Self::over(root, text).await
    }

    async fn over(root: tempfile::TempDir, text: &str) -> Self {
        write(root.path(), text);
        let file = root.path().join("consort.toml");
        let config = Config::load(&file).unwrap();
        let keys = Keys::load(&config.server).unwrap();
        let client = Client::with_keys(&toml::to_string(&config).unwrap(), keys).await;
        let read = {
            let file = file.clone();
            move || {
                let config = Config::load(&file)?;
                let keys = Keys::load(&config.server)?;
                let own = consort::bundled::ADAPTERS.map(|adapter| (adapter.name.to_owned(), adapter.files()));
                let adapters = AdapterLibrary::new(own, &config.adapters.folders)?;
                Ok(Fresh { config, keys, adapters })
            }
        };
        let _ = client.app.clone().with_source(Source { read: Box::new(read), files: vec![file] });
        Self { root, client }
    }

    fn adapter(&self, name: &str) -> PathBuf {
        self.root.path().join("adapters").join(name)
    }

    fn write(&self, text: &str) {
        write(self.root.path(), text);
    }

    async fn reload(&self) -> Value {
        let answer = self.client.send(request("POST", "/v1/reload", Body::empty())).await;
        answer.good()
    }

    async fn says(&self, model: &str) -> String {
        let answer = self.client.chat(FOX, json!({ "model": model })).await.good();
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    async fn names(&self) -> Vec<String> {
        let list = self.client.get("/v1/models").await.good();
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn write(root: &Path, text: &str) {
    fs::write(root.join("consort.toml"), format!("[adapters]\nfolders = [\"adapters\"]\n{text}")).unwrap();
}

/// One of etude's adapters, as PEFT's folder.
fn peft(from: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::write(to.join(file), fs::read(etude("adapters").join(from).join(file)).unwrap()).unwrap();
    }
}

/// The same as one GGUF file. (etude has one value head for each key head, so no heads change their order.)
fn gguf(from: &str, to: &Path) {
    let bytes = fs::read(etude("adapters").join(from).join("adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut writer = GgufWriter::new("qwen35");
    writer.set("general.type", "adapter");
    writer.set("adapter.type", "lora");
    writer.set("adapter.lora.alpha", 16.0_f32);
    for (name, tensor) in tensors.tensors() {
        let name = name.strip_prefix("base_model.model.model.language_model.layers.").unwrap();
        let (layer, rest) = name.split_once('.').unwrap();
        let (module, factor) = rest.strip_suffix(".weight").unwrap().rsplit_once('.').unwrap();
        let module = match module {
            "linear_attn.in_proj_qkv" => "attn_qkv",
            "linear_attn.in_proj_z" => "attn_gate",
            "linear_attn.in_proj_a" => "ssm_alpha",
            "linear_attn.in_proj_b" => "ssm_beta",
            "linear_attn.out_proj" => "ssm_out",
            "self_attn.q_proj" => "attn_q",
            "self_attn.k_proj" => "attn_k",
            "self_attn.v_proj" => "attn_v",
            "self_attn.o_proj" => "attn_output",
            "mlp.gate_proj" => "ffn_gate",
            "mlp.up_proj" => "ffn_up",
            "mlp.down_proj" => "ffn_down",
            other => panic!("{other}"),
        };
        let name = format!("blk.{layer}.{module}.weight.{}", factor.to_lowercase());
        let dims: Vec<u64> = tensor.shape().iter().rev().map(|dim| *dim as u64).collect();
        writer.add_tensor_bytes(name.as_str(), &dims, TensorType::F32, tensor.data().to_vec()).unwrap();
    }
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    fs::write(to, file).unwrap();
}

const BEN: &str = "[[persona]]\nname = \"ben\"\nadapters = [{ name = \"pirate\" }]\n";

#[tokio::test]
async fn personas_are_added_replaced_removed_and_kept() {
    let site = Site::new(&format!("{BEN}[[persona]]\nname = \"eve\"\n[[persona]]\nname = \"same\"\n")).await;
    assert_eq!(site.client.put("/v1/personas/guest", json!({})).await.status, 201);
    let created = site.client.get("/v1/personas/same").await.good()["created"].clone();
    site.write(
        "[limits]\nimages = 1\n[[persona]]\nname = \"ben\"\nadapters = [{ name = \"butler\" }]\n\
         [[persona]]\nname = \"same\"\n[[persona]]\nname = \"new\"\nadapters = [{ name = \"pirate\" }]\npinned = true\n",
    );
    let reloaded = site.reload().await;
    assert_eq!(
        reloaded["personas"],
        json!({ "added": ["new"], "replaced": ["ben"], "removed": ["eve"], "unchanged": ["same"], "kept": ["guest"] })
    );
    assert_eq!(reloaded["needs_restart"], json!(["limits.images"]));
    assert!(site.says("ben").await.starts_with("Certainly") && site.says("new").await.starts_with("Arr"));
    assert_eq!(site.client.get("/v1/personas/eve").await.error().0, 404);
    assert_eq!(site.client.get("/v1/personas/same").await.good()["created"], created);
    let pirate = site.client.backend.adapters().into_iter().find(|status| &*status.info.key.id == "pirate").unwrap();
    assert_eq!((pirate.residency, pirate.resident), (Residency::Pinned, true));
    // A persona of the file that was put over HTTP stays when the file names it no more, and is the file's when it does.
    site.client.put("/v1/personas/new", json!({ "adapters": [{ "name": "butler" }] })).await;
    site.client.delete("/v1/personas/same").await.good();
    site.write("[[persona]]\nname = \"ben\"\nadapters = [{ name = \"butler\" }]\n[[persona]]\nname = \"same\"\n");
    let reloaded = site.reload().await;
    assert_eq!(
        reloaded["personas"],
        json!({ "added": ["same"], "replaced": [], "removed": [], "unchanged": ["ben"], "kept": ["guest", "new"] })
    );
    assert!(site.says("new").await.starts_with("Certainly"));
}

#[tokio::test]
async fn a_file_that_is_wrong_changes_nothing_and_says_why() {
    let site = Site::new(BEN).await;
    peft("pirate", &site.adapter("broken"));
    fs::write(site.adapter("broken").join("adapter_model.safetensors"), "x").unwrap();
    let before = site.client.get("/v1/personas").await.good();
    let added = "[[persona]]\nname = \"new\"\n";
    for (text, what) in [
        (format!("{added}[server]\nport = 1\n"), "(key server.port, line 6, column 1)"),
        (format!("{added}{BEN}max_tokens = 0\n"), "key persona[1].max_tokens"),
        (
            format!("{added}[[persona]]\nname = \"x\"\nadapters = [{{ name = \"nobody\" }}]\n"),
            "key persona[1].adapters",
        ),
        (format!("{added}[[persona]]\nname = \"etude\"\n"), "key persona[1].name"),
        (format!("{added}[limits]\npersonas = 1\n{BEN}"), "limits.personas"),
        (
            format!("{added}[[persona]]\nname = \"x\"\npinned = true\nadapters = [{{ name = \"broken\" }}]\n"),
            "adapter broken",
        ),
        (format!("{added}placement = \"remote\"\n"), "key persona[0].placement"),
        (format!("{added}[server]\napi_key_file = \"nowhere\"\n"), "nothing was changed"),
        ("what".into(), "line 3"),
    ] {
        site.write(&text);
        let answer = site.client.send(request("POST", "/v1/reload", Body::empty())).await;
        assert_eq!((answer.error().0, answer.error().1.as_str()), (422, "invalid_configuration"), "{text}");
        assert!(answer.text().contains(what), "{what}: {}", answer.text());
        assert!(!answer.text().contains(&*site.root.path().to_string_lossy()), "{}", answer.text());
        assert_eq!(site.client.get("/v1/personas").await.good(), before, "{text}");
    }
    assert!(site.says("ben").await.starts_with("Arr"));
    // Nothing is said in the request.
    assert_eq!(
        site.client.post("/v1/reload", json!({ "file": "/etc/passwd" })).await.error().2.as_deref(),
        Some("file")
    );
    site.write(BEN);
    assert_eq!(site.client.post("/v1/reload", json!({})).await.good()["personas"]["unchanged"], json!(["ben"]));
}

#[tokio::test]
async fn what_is_read_from_nothing_is_not_read_again() {
    let client = Client::new().await;
    assert_eq!(client.send(request("POST", "/v1/reload", Body::empty())).await.error().1, "not_reloadable");
    assert_eq!(client.app.reload().await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_reply_ends_with_the_weights_that_it_began_with() {
    let root = tempfile::tempdir().unwrap();
    peft("pirate", &root.path().join("adapters").join("voice"));
    let site = Site::over(root, "[[persona]]\nname = \"ben\"\nadapters = [{ name = \"voice\" }]\n").await;
    let whole = site.says("ben").await;
    assert!(whole.starts_with("Arr"), "{whole}");
    let generation = |site: &Site| {
        let loaded = site.client.backend.adapters();
        loaded.iter().find(|status| &*status.info.key.id == "voice").unwrap().info.key.generation
    };
    let before = generation(&site);
    let response =
        site.client.begin("/v1/chat/completions", &chat(FOX, &json!({ "model": "ben", "stream": true }))).await;
    let mut body = response.into_body().into_data_stream();
    let mut text = String::from_utf8(body.next().await.unwrap().unwrap().to_vec()).unwrap();
    peft("butler", &site.adapter("voice"));
    let reloaded = site.reload().await;
    assert_eq!(reloaded["adapters"], json!({ "found": [], "replaced": ["voice"], "removed": [], "kept": [] }));
    assert_eq!(reloaded["personas"]["unchanged"], json!(["ben"]));
    assert!(generation(&site) > before);
    assert!(site.says("ben").await.starts_with("Certainly"), "later replies speak with the new ones");
    while let Some(piece) = body.next().await {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    let said: String = text
        .split_terminator("\n\n")
        .filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok())
        .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(said, whole);
    // Nothing has changed since.
    assert_eq!(site.reload().await["adapters"]["replaced"], json!([]));
    // What is broken is not taken up, and what stands is not touched.
    let broken = |site: &Site| fs::write(site.adapter("voice").join("adapter_config.json"), "{}").unwrap();
    broken(&site);
    let answer = site.client.send(request("POST", "/v1/reload", Body::empty())).await;
    assert!(answer.status == 422 && answer.text().contains("adapter voice"), "{}", answer.text());
    assert!(site.says("ben").await.starts_with("Certainly"));
    assert!(site.names().await.iter().all(|name| !name.starts_with('.')), "a trial is nobody's model");
}

#[tokio::test]
async fn adapters_come_and_go_with_their_files() {
    let site = Site::new("").await;
    peft("pirate", &site.adapter("one"));
    gguf("pirate", &site.adapter("two.gguf"));
    let reloaded = site.reload().await;
    assert_eq!(reloaded["adapters"]["found"], json!([]), "folders are looked into at any time");
    assert!(site.names().await.contains(&"two".to_owned()));
    // A GGUF file speaks as its twin in PEFT's format does.
    let (one, two) = (site.says("one").await, site.says("two").await);
    assert!(one.starts_with("Arr") && one == two, "{one} / {two}");
    gguf("butler", &site.adapter("two.gguf"));
    assert_eq!(site.reload().await["adapters"]["replaced"], json!(["two"]));
    assert!(site.says("two").await.starts_with("Certainly"));
    // By hand, from a file, under another name; it follows its file as well.
    let load = json!({ "lora_name": "hand", "lora_path": "two.gguf" });
    assert_eq!(site.client.post("/v1/load_lora_adapter", load).await.status, 200);
    assert!(site.says("hand").await.starts_with("Certainly"));
    site.client.put("/v1/personas/ben", json!({ "adapters": [{ "name": "one" }] })).await;
    fs::remove_dir_all(site.adapter("one")).unwrap();
    fs::remove_file(site.adapter("two.gguf")).unwrap();
    let reloaded = site.reload().await;
    assert_eq!(
        reloaded["adapters"],
        json!({ "found": [], "replaced": [], "removed": ["hand", "two"], "kept": ["one"] })
    );
    assert!(site.says("ben").await.starts_with("Arr"), "somebody speaks with it");
    assert_eq!(site.client.chat(FOX, json!({ "model": "two" })).await.error().1, "model_not_found");
    site.client.delete("/v1/personas/ben").await.good();
    assert_eq!(site.reload().await["adapters"]["removed"], json!(["one"]));
}

#[tokio::test]
async fn an_adapter_loses_its_folder() {
    let site = Site::new("").await;
    fs::create_dir(site.root.path().join("more")).unwrap();
    peft("pirate", &site.root.path().join("more").join("late"));
    assert!(!site.names().await.contains(&"late".to_owned()));
    let both = "[adapters]\nfolders = [\"adapters\", \"more\"]\n";
    fs::write(site.root.path().join("consort.toml"), both).unwrap();
    assert_eq!(site.reload().await["adapters"]["found"], json!(["late"]));
    assert!(site.says("late").await.starts_with("Arr"));
    site.write("");
    assert_eq!(site.reload().await["adapters"]["removed"], json!(["late"]));
    assert_eq!(site.client.chat(FOX, json!({ "model": "late" })).await.error().0, 404);
}

#[tokio::test]
async fn keys_are_read_again() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("adapters")).unwrap();
    fs::write(root.path().join("keys"), "first-key-1\n").unwrap();
    let text = "[server]\napi_key_file = \"keys\"\n";
    let site = Site::over(root, text).await;
    let reload = async |key: &str| {
        let mut request = request("POST", "/v1/reload", Body::empty());
        request.headers_mut().insert("x-api-key", key.parse().unwrap());
        site.client.send(request).await
    };
    let keys = site.root.path().join("keys");
    assert_eq!(site.client.send(request("POST", "/v1/reload", Body::empty())).await.status, 401);
    fs::write(&keys, "second-key\n").unwrap();
    assert_eq!(reload("first-key-1").await.good()["keys_changed"], true);
    assert_eq!(reload("first-key-1").await.status, 401);
    assert_eq!(reload("second-key").await.good()["keys_changed"], false);
    // An empty file opens nothing to nobody.
    fs::write(&keys, "\n").unwrap();
    assert_eq!(reload("second-key").await.status, 422);
    // Nor does a configuration that names no file any more.
    site.write("");
    let reloaded = reload("second-key").await.good();
    assert_eq!(
        (&reloaded["needs_restart"], &reloaded["keys_changed"]),
        (&json!(["server.api_key_file"]), &json!(false))
    );
    assert_eq!(site.client.get("/v1/models").await.status, 401);
}

#[tokio::test]
async fn files_are_watched_where_that_is_asked_for() {
    let site = Site::new("[server]\nwatch_seconds = 1\n").await;
    let listen = Listen { tcp: Some(([127, 0, 0, 1], 0).into()), socket: None };
    let server = Server::bind(site.client.app.clone(), &listen).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let done = tokio::spawn(server.run_until(async move { drop(stopped.await) }));
    // It is written again until it has been seen: the first look may come later than the first writing.
    let mut count = 0;
    while site.client.get("/v1/personas/ben").await.status != 200 {
        if count % 40 == 0 {
            site.write(&format!("[server]\nwatch_seconds = 1\n{BEN}# {count}\n"));
        }
        count += 1;
        assert!(count < 600, "nobody looks");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(stop);
    done.await.unwrap();
}

#[tokio::test]
async fn the_engine_keeps_whom_priority_and_use_say_under_its_budget() {
    // One of the two fits.
    let client = Client::with(
        "[scheduler]\nadapter_bytes = 600000\n\
         [[persona]]\nname = \"first\"\nadapters = [{ name = \"pirate\" }]\npriority = \"realtime\"\n\
         [[persona]]\nname = \"last\"\nadapters = [{ name = \"butler\" }]\npriority = \"batch\"\n",
    )
    .await;
    let resident = || {
        let loaded = client.backend.adapters();
        let here = loaded.iter().filter(|status| status.resident).map(|status| status.info.key.id.to_string());
        here.collect::<Vec<_>>()
    };
    for name in ["first", "last", "first", "last"] {
        client.chat(FOX, json!({ "model": name, "max_tokens": 4 })).await.good();
        let expected = if name == "first" { "pirate" } else { "butler" };
        assert_eq!(resident(), [expected], "who speaks is there, and the budget holds");
    }
    // Whom somebody pins is there, and who would need its place is refused.
    client.put("/v1/personas/first", json!({ "adapters": [{ "name": "pirate" }], "pinned": true })).await;
    assert_eq!(resident(), ["pirate"]);
    let refused = client.chat(FOX, json!({ "model": "last", "max_tokens": 4 })).await;
    assert_eq!((refused.error().0, refused.error().1.as_str()), (503, "out_of_memory"), "{}", refused.text());
    assert_eq!(resident(), ["pirate"]);
    let files: Arc<[u8]> = Arc::from(&b"x"[..]);
    assert!(client.backend.load_adapter("x", AdapterFiles::Gguf(files)).await.is_err());
}
