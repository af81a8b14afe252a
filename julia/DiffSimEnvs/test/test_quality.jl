using Aqua
using DiffSimEnvs

# Persistent tasks start a Julia of their own that instantiates the package: not offline.
Aqua.test_all(DiffSimEnvs; persistent_tasks = false)
