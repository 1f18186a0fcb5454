# The dashboard for a class: CPU torch, the images baked in, no root. Use and options: docs/docker.md.
FROM python:3.11-slim

# Where pip finds torch. The package index's build for x86-64 Linux brings CUDA along (gigabytes); PyTorch's own index has a
# CPU-only build: docker build --build-arg TORCH_INDEX=ADDRESS (the address is in the install selector on pytorch.org).
ARG TORCH_INDEX=""

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY requirements.txt .
RUN grep -E '^torch' requirements.txt > torch.txt \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r torch.txt \
    && pip install -r requirements.txt
COPY . .
RUN python -c "from regcompare.config import DATASETS, make_config; from regcompare.data import load; \
    [load(make_config({'dataset': name})) for name in DATASETS]" \
    && useradd --create-home student && mkdir -p /store && chown -R student /store cache
USER student
ENV REGCOMPARE_STORE=sqlite:////store/regcompare.db
VOLUME /store
EXPOSE 8501
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD python -c "import urllib.request as r; r.urlopen('http://localhost:8501/_stcore/health', timeout=2)"
CMD ["streamlit", "run", "app.py", "--server.port", "8501", "--server.address", "0.0.0.0"]
