"""The embedded plant: Postgres, S3, MLflow and Airflow on one machine, from the package registry alone.

plant.up(settings)        start, or continue where it was stopped or cut off
plant.down(settings)      stop; nothing of it is left running, all state stays
plant.status(settings)    every part: state, process, memory, URL
plant.memory(settings)    bytes of everything together
plant.load(home)          the settings of a plant that was started
plant.airflow_api(...)    Airflow's REST API, logged in
plant.start_stores(...)   the stores alone, for tests and benches
"""

from plant.api import airflow_api
from plant.display import announce, progress
from plant.errors import PartFailed, PlantError, PortTaken
from plant.operate import PartStatus, down, load, memory, status, up
from plant.ports import free_ports
from plant.stores import start_stores, temporary_settings

__all__ = [
    "PartFailed",
    "PartStatus",
    "PlantError",
    "PortTaken",
    "airflow_api",
    "announce",
    "down",
    "free_ports",
    "load",
    "memory",
    "progress",
    "start_stores",
    "status",
    "temporary_settings",
    "up",
]
