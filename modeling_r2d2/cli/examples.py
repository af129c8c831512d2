"""One example for each verb, shown by its `--help`."""

START = (
    "Search your pictures: `r2d2 index photos --model MODEL --output photos.index`, then "
    "`r2d2 search photos.index 一只猫`, then `r2d2 app --index photos.index`."
)

EXAMPLES = {
    "index": "r2d2 index photos --model runs/demo --output photos.index",
    "search": "r2d2 search photos.index 一只猫 向日葵 --top-k 5 --output hits.json",
    "app": "r2d2 app --index photos.index --example 一只猫",
    "match": "r2d2 match photo.jpg 一只猫 一只狗 --model runs/demo",
    "demo": "r2d2 demo --output runs/demo",
    "pretrain": "r2d2 pretrain --data pairs.jsonl --output runs/mine --preset r2d2-vit-b-16 --steps 10000",
    "finetune": "r2d2 finetune retrieval --model runs/demo --data pairs.jsonl --output runs/tuned",
    "evaluate": "r2d2 evaluate --task retrieval --data pairs.jsonl --model runs/demo runs/tuned",
    "calibrate": "r2d2 calibrate runs/demo --data held_out.jsonl --plot reliability.png",
    "convert": "r2d2 convert checkpoint.pth runs/official --vocab vocab.txt",
    "export": "r2d2 export runs/demo --output runs/onnx --precision int8",
    "card": "r2d2 card runs/demo --license apache-2.0 --repo NAME/MODEL",
    "push": "r2d2 push runs/demo NAME/MODEL --dry-run",
    "data check": "r2d2 data check pairs.jsonl --sheet pairs.png",
    "data card": "r2d2 data card pairs.jsonl --name NAME --license cc-by-4.0",
    "data matching-pairs": "r2d2 data matching-pairs pairs.jsonl pairs.list.jsonl",
    "data scenes": "r2d2 data scenes --output scenes",
}

__all__ = ["EXAMPLES", "START"]
