"""A pipeline under a simulated clock: real nodes, a real orchestrator, a simulated broker, boards and traffic.

Every board is a `distree.node.StageNode`, and the orchestrator is the service itself, `orchestrator.service.Service`
with its tuning, planner and store: nothing of what they decide is written again here. What is simulated is what they
ask for: the network that carries their messages, the interpreter that runs their segments, the inputs, and the time.
"""
