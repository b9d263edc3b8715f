# CPU: docker build -t jaxpgd . ; NVIDIA: docker build --build-arg EXTRAS=cuda,mujoco -t jaxpgd:cuda . , run with --gpus all.
# Datasets and runs are kept outside: docker run -v "$PWD/runs:/app/runs" -v "$HOME/.minari:/root/.minari" jaxpgd run
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG EXTRAS=mujoco
WORKDIR /app

COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY jaxpgd jaxpgd
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"
COPY configs configs

ENTRYPOINT ["jaxpgd"]
CMD ["--help"]
