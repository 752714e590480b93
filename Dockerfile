# clipkit on a GPU machine: docker build -t clipkit . && docker run --gpus all -v "$PWD:/work" clipkit train recipe.yaml
# torch, torchvision and CUDA come with the base image and stay as they are.
FROM pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime
COPY pyproject.toml README.md LICENSE /src/
COPY clipkit /src/clipkit
COPY recipes /src/recipes
COPY benchmarks/suites /src/benchmarks/suites
RUN pip install --no-cache-dir "/src[data,report]" && rm -rf /src
WORKDIR /work
ENTRYPOINT ["clipkit"]
