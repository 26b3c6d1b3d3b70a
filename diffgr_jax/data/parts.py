"""What the slots of a packed row hold beside the parts of a message (rerank/chat.py), for whoever reads rows alone."""

BEHIND = 4  # part of the slots between an example's end and the end of its last block
