"""Small networks with random weights, saved as Hugging Face folders: one of each task."""

import torch
import transformers as hf

torch.manual_seed(0)
sizes = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
words = {**sizes, "vocab_size": 100, "max_position_embeddings": 64}
moods = {0: "sad", 1: "glad"}
models = {
    "text-classifier": hf.BertForSequenceClassification(hf.BertConfig(**words, id2label=moods)),
    "token-classifier": hf.BertForTokenClassification(hf.BertConfig(**words, num_labels=5)),
    "encoder": hf.BertModel(hf.BertConfig(**words)),
    "image-classifier": hf.ViTForImageClassification(
        hf.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=10)
    ),
}
for name, model in models.items():
    model.save_pretrained(name)
    print(f"edgeserve convert {name}")
