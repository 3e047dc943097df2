class Model:
    def __init__(self, name):
        self.name = name
        self.patched = False
        self.adapted = False


def load_model(path, lazy=False):
    if path == "missing":
        raise FileNotFoundError(f"no model at {path}")
    return Model(path), {"path": path}


def load(path, adapter_path=None, lazy=False, return_config=False):
    model, config = load_model(path, lazy)
    if adapter_path is not None:
        assert not model.patched, "patched before its adapters were applied"
        model.adapted = True
    return (model, "tokenizer", config) if return_config else (model, "tokenizer")


def sharded_load(path, group=None):
    probe, _ = load_model(path, lazy=True)
    model, _ = load_model(path, lazy=True)
    assert not probe.patched and not model.patched
    return model, "tokenizer"
