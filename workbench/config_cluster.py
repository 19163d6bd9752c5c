"""The settings of a run on a Ray cluster. Part of `config`."""

from pydantic import Field, model_validator

from workbench.section import Section


class RayConfig(Section):
    """Where a run goes that is `on` ray, and how wide it is there; none of it changes a result."""

    address: str = "auto"
    """The cluster's dashboard, as in http://head:8265; auto: the cluster that this machine is part of."""
    replicas: int | None = Field(None, ge=1)
    """Copies of the engine that share the questions; null: as many as the nodes have room for when a phase begins."""
    workers: int | None = Field(None, ge=1)
    """Processes that fine-tune with ZeRO; null: sft.processes, else one for each GPU of the cluster."""
    storage: str | None = None
    """Where checkpoints go between nodes that do not share the home: an fsspec URL, as in s3://bucket/folder. Null:
    every node sees the home under the same path. Keys come from the environment of the nodes, never from here."""

    @model_validator(mode="after")
    def _is_an_address(self) -> "RayConfig":
        if self.address != "auto" and not self.address.startswith(("http://", "https://")):
            raise ValueError(
                f"ray.address must be auto or the dashboard's address as in http://head:8265, got {self.address!r}"
            )
        if self.storage is not None and "://" not in self.storage:
            raise ValueError(f"ray.storage must be a URL as in s3://bucket/folder, got {self.storage!r}")
        return self
