"""An agent of one's own: a tool that asks its caller for a name."""

from agent_runtime.profile import Agent, Call, Outcome, Tool

FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


class Greeter(Agent):
    def tools(self):
        return [Tool("greet", "Greets whoever calls.", {"type": "object"}, self.greet, read_only=True)]

    async def greet(self, call: Call) -> Outcome:
        if not (answer := call.round.answers.get("who")):
            ask = {
                "method": "elicitation/create",
                "params": {"message": "Your name?", "requestedSchema": FORM},
            }
            return Outcome("", asks={"who": ask})
        return Outcome(f"Hello, {answer['content']['name']}!")
