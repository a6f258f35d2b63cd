"""A pipeline under a simulated clock: real nodes, a real orchestrator, a simulated broker, boards and traffic.

Every board is a `distree.node.StageNode`, and the orchestrator is the service itself, `orchestrator.service.Service`
with its tuning, planner and store: none of their decisions is implemented a second time here. What is simulated is what
they depend on: the network that carries their messages, the interpreter that runs their segments, inputs, and time.
"""
