"""From the files and requests that configure a model to what model.yaml would say: Triton's words are understood in ours."""
