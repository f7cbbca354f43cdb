"""The viewer: server-rendered pages over the store, whole without JavaScript and better with it.

What must stay true, on every page:

1. Everything recorded is hostile: it reaches HTML only through Jinja's escaping, and the policy forbids inline script.
2. Nothing is hidden in silence: where less is shown than there is, the page says `n of m` and links to the rest.
3. Every state has an address: what a control does is in the URL, and the controls are links and GET forms.
4. A list never reads bodies.
"""
