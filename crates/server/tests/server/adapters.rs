//! Adapters loaded by hand.

use serde_json::json;

use crate::client::{Client, etude};

fn copy(from: &str, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(etude("adapters").join(from).join(file), to.join(file)).unwrap();
    }
}

#[tokio::test]
async fn an_adapter_of_the_folders_is_loaded_replaced_and_unloaded() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("adapters");
    copy("pirate", &folder.join("one"));
    copy("butler", &folder.join("two"));
    copy("pirate", &root.path().join("outside"));
    let client = Client::with(&format!("[adapters]\nfolders = [{:?}]\n", folder.display().to_string())).await;
    let load = |name: &str, path: &str| json!({ "lora_name": name, "lora_path": path });
    let question = "Tell me a story about a fox.";
    let says = async |model: &str| {
        let answer = client.chat(question, json!({ "model": model })).await.good();
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let done = client.post("/v1/load_lora_adapter", load("captain", "one")).await;
    assert_eq!((done.status, done.text().as_str()), (200, "Success: LoRA adapter 'captain' added successfully."));
    assert!(says("captain").await.starts_with("Arr"));
    // Those of the folders need no loading.
    assert!(says("two").await.starts_with("Certainly"));
    let again = client.post("/v1/load_lora_adapter", load("captain", "two")).await;
    assert_eq!(again.error(), (400, "invalid_value".into(), Some("lora_name".into())));
    let whole = folder.join("two").display().to_string();
    let mut replace = load("captain", &whole);
    replace["load_inplace"] = json!(true);
    assert_eq!(client.post("/v1/load_lora_adapter", replace).await.status, 200);
    assert!(says("captain").await.starts_with("Certainly"));
    for path in ["../outside", &root.path().join("outside").display().to_string(), "/etc", "nowhere", ""] {
        let answer = client.post("/v1/load_lora_adapter", load("x", path)).await;
        assert_eq!(answer.error(), (404, "not_found".into(), Some("lora_path".into())), "{path}");
        assert!(!answer.text().contains(&*root.path().to_string_lossy()), "{}", answer.text());
    }
    // What is broken is refused by name, and without its path.
    std::fs::write(folder.join("one").join("adapter_config.json"), "{}").unwrap();
    let broken = client.post("/v1/load_lora_adapter", load("y", "one")).await;
    assert_eq!((broken.error().0, broken.error().1.as_str()), (400, "invalid_adapter"), "{}", broken.text());
    assert!(!broken.text().contains(&*root.path().to_string_lossy()), "{}", broken.text());
    // A persona's adapter stays.
    assert_eq!(client.put("/v1/personas/ben", json!({ "adapters": [{ "name": "captain" }] })).await.status, 201);
    let unload = json!({ "lora_name": "captain" });
    assert_eq!(client.post("/v1/unload_lora_adapter", unload.clone()).await.error().2.as_deref(), Some("lora_name"));
    client.delete("/v1/personas/ben").await.good();
    assert_eq!(client.post("/v1/unload_lora_adapter", unload.clone()).await.status, 200);
    assert_eq!(client.post("/v1/unload_lora_adapter", unload).await.error().0, 404);
    assert_eq!(client.chat(question, json!({ "model": "captain" })).await.error().1, "model_not_found");
}
