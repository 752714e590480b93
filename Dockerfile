# clipkit on a GPU machine; the second -v keeps downloaded models:
#   docker build -t clipkit .
#   docker run --rm --gpus all -v "$PWD:/work" -v ~/.cache/huggingface:/root/.cache/huggingface clipkit train recipe.yaml
# torch, torchvision and CUDA come with the base image and stay as they are. torch 2.8 is the first with which the losses
# use tensor cores.
FROM pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime
COPY pyproject.toml README.md LICENSE /src/
COPY clipkit /src/clipkit
COPY recipes /src/recipes
COPY benchmarks/suites /src/benchmarks/suites
RUN pip install --no-cache-dir "/src[data,report]" && rm -rf /src && clipkit --version
WORKDIR /work
ENTRYPOINT ["clipkit"]
