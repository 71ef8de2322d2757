"""Which statements a module hands to SQLite, and whether they are made of constants alone."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXECUTES = ("execute", "executemany", "executescript")


class Constants(ast.NodeVisitor):
    """Which expressions of a module are made of constants alone, whatever is given to its public functions.

    A name is constant where everything that is ever bound to it in the module is; a parameter, where its function is
    private and every call hands it a constant.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.bound: dict[str, list[ast.expr | None]] = {}
        self.imported: dict[str, Path] = {}
        self.calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        self.visit(tree)

    def bind(self, target: ast.expr, value: ast.expr | None) -> None:
        for name in ast.walk(target):
            if isinstance(name, ast.Name):
                self.bound.setdefault(name.id, []).append(value)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.bind(target, node.value)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.bind(node.target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.bind(node.target, node.value)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.bind(node.target, node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        values = [node.iter]
        if isinstance(node.iter, ast.Call) and ast.unparse(node.iter.func) == "enumerate":
            values = node.iter.args[:1]
        self.bind(node.target, values[0])
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_withitem(self, node: ast.withitem) -> None:
        if node.optional_vars is not None:
            self.bind(node.optional_vars, None)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        for place, name in enumerate(names):
            calls = [c for c in self.calls if isinstance(c.func, ast.Name) and c.func.id == node.name]
            handed = [c.args[place] if place < len(c.args) else None for c in calls]
            self.bound.setdefault(name, []).extend(handed if node.name.startswith("_") and handed else [None])
        for argument in (*node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))):
            self.bound.setdefault(argument.arg, []).append(None)
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        path = ROOT / Path(*(node.module or "").split(".")).with_suffix(".py")
        if path.is_file():
            self.imported |= {a.asname or a.name: path for a in node.names}

    def constant(self, node: ast.expr | None, within: tuple[str, ...] = ()) -> bool:
        match node:
            case ast.Constant():
                return True
            case ast.Name(id=name) if name in within:
                return True  # bound to something made of itself: what else it is bound to decides
            case ast.Name(id=name) if name in self.bound:
                return all(self.constant(value, (*within, name)) for value in self.bound[name])
            case ast.Name(id=name) if name in self.imported:
                return Constants(ast.parse(self.imported[name].read_text(encoding="utf-8"))).constant(node)
            case ast.JoinedStr(values=parts):
                return all(self.constant(p.value if isinstance(p, ast.FormattedValue) else p, within) for p in parts)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return all(self.constant(p, within) for p in parts)
            case ast.BinOp(left=left, right=right):
                return self.constant(left, within) and self.constant(right, within)
            case ast.IfExp(body=left, orelse=right):
                return self.constant(left, within) and self.constant(right, within)
            case ast.Subscript(value=value):
                return self.constant(value, within)
            case ast.Call(func=ast.Attribute(value=value, attr="join" | "split"), args=given):
                return self.constant(value, within) and all(self.constant(a, within) for a in given)
            case ast.Call(func=ast.Name(id="len"), args=[value]):
                return self.constant(value, within)
        return False


def made_of_data(path: Path) -> list[str]:
    """The calls that hand SQLite a statement which is not made of constants alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = Constants(tree)
    calls = [c for c in constants.calls if isinstance(c.func, ast.Attribute) and c.func.attr in EXECUTES]
    return [f"{path.name}: {ast.unparse(c.args[0])}" for c in calls if not constants.constant(c.args[0])]
